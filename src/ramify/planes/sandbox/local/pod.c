/* The pod root of a live sandbox: everything that commands start there runs below it, so that one
 * dump of its tree captures all of it.
 *
 *   supervisor (PID 1, never captured)
 *   └── pod (this program)           starts reapers; asked over a socket, which it lets go of
 *       ├── reaper (a fork of it)    one per command: keeps its descendants, reports
 *       │   └── command (own session)
 *       └── relay (a fork of it)     of a command with a terminal: between that and three pipes
 *
 * The relay comes after the command in the tree: of all holders of a terminal, CRIU takes the first
 * for its owner, and that must be who has opened /dev/tty.
 *
 * x86-64 Linux without a C library, so that nothing of the host is mapped into it. `dev/pod` builds
 * it into pod_elf.py. What the supervisor and it say to each other is described in pod.py.
 */

typedef unsigned int u32;
typedef int i32;
typedef unsigned long u64;
typedef long i64;

enum {
    SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_poll = 7, SYS_lseek = 8, SYS_mmap = 9,
    SYS_munmap = 11, SYS_sigaction = 13, SYS_sigprocmask = 14, SYS_ioctl = 16, SYS_dup2 = 33,
    SYS_getpid = 39,     SYS_socket = 41, SYS_connect = 42, SYS_recvmsg = 47, SYS_fork = 57, SYS_execve = 59,
    SYS_exit = 60, SYS_wait4 = 61, SYS_fcntl = 72, SYS_chdir = 80, SYS_fchown = 93, SYS_umask = 95,
    SYS_setuid = 105, SYS_setgid = 106, SYS_setsid = 112, SYS_setgroups = 116, SYS_prctl = 157,
    SYS_setrlimit = 160, SYS_signalfd4 = 289, SYS_pipe2 = 293, SYS_pread = 17
};

enum { EPERM = 1, ENOENT = 2, EINTR = 4, EAGAIN = 11, ENOTDIR = 20 };
enum { O_WRONLY = 1, O_RDWR = 2, O_NOCTTY = 0400, O_NONBLOCK = 04000, O_CLOEXEC = 02000000 };
enum { SIGHUP = 1, SIGINT = 2, SIGUSR1 = 10, SIGPIPE = 13, SIGTERM = 15, SIGCHLD = 17 };
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16 };
enum { TIOCSCTTY = 0x540E, TIOCSWINSZ = 0x5414, TIOCSPTLCK = 0x40045431, TIOCGPTPEER = 0x5441 };
enum { FLAG_TTY = 1, FLAG_IDS = 2, FLAG_ANNOUNCE = 4 };
enum { STEP_START = 1, STEP_CWD = 2, STEP_USER = 3, STEP_EXEC = 4, STEP_LIMIT = 5 };

#define BUFFER 4096
#define MASK(n) (1UL << ((n) - 1))

static i64 call6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f) {
    i64 result;
    register i64 r10 __asm__("r10") = d;
    register i64 r8 __asm__("r8") = e;
    register i64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define call(n, a, b, c) call6((n), (i64)(a), (i64)(b), (i64)(c), 0, 0, 0)
#define call4(n, a, b, c, d) call6((n), (i64)(a), (i64)(b), (i64)(c), (i64)(d), 0, 0)

void *memcpy(void *to, const void *from, u64 n) {
    char *t = to;
    const char *f = from;
    while (n--) *t++ = *f++;
    return to;
}
void *memset(void *to, int value, u64 n) {
    char *t = to;
    while (n--) *t++ = (char)value;
    return to;
}

static void die(void) {
    for (;;) call(SYS_exit, 0, 0, 0);
}

/* --- what the supervisor sends: this header, then groups (u32), limits (u64 pairs) and strings:
 * cwd, arguments, environment, places of the program; each ended by a zero byte. */
struct plan {
    u32 flags, uid, gid, group_count, limit_count, arg_count, env_count, place_count, rows, cols;
};

struct record { char kind[4]; i32 value, reaper; };
struct pollfd { i32 fd; short events, revents; };
struct action { u64 handler, flags, restorer, mask; };
struct winsize { unsigned short rows, cols, x, y; };
struct iov { void *base; u64 size; };
struct msg { void *name; u64 name_size; struct iov *iov; u64 iovs; void *control; u64 control_size; u64 flags; };
struct control { u64 size; i32 level, kind; i32 fds[8]; };

static void tell(i32 fd, char kind, i32 value) {
    struct record record = {{kind, 0, 0, 0}, value, (i32)call(SYS_getpid, 0, 0, 0)};
    while (call(SYS_write, fd, &record, sizeof record) == -EINTR) {}
}

static void dispose(i32 number, u64 handler) {
    struct action action = {handler, 0, 0, 0};
    call4(SYS_sigaction, number, &action, 0, 8);
}

static void block(u64 mask) { call4(SYS_sigprocmask, 2 /* SETMASK */, &mask, 0, 8); }

static i32 signal_fd(u64 mask) {
    return (i32)call4(SYS_signalfd4, -1, &mask, 8, O_NONBLOCK | O_CLOEXEC);
}

/* --- the command's own process */

static char *place_strings(char *at, u32 count, char **list) {
    for (u32 i = 0; i < count; i++) {
        list[i] = at;
        while (*at) at++;
        at++;
    }
    list[count] = 0;
    return at;
}

static void refuse(i32 errors, i32 step, i64 code) {
    i32 value = (step << 16) | (i32)-code;
    call(SYS_write, errors, &value, sizeof value);
    die();
}

static i64 take_ids(const struct plan *plan, const u32 *groups) {
    i64 code = call(SYS_setgroups, plan->group_count, groups, 0);
    /* A map of one id forbids it; then there are no groups to drop. */
    if (code && !(code == -EPERM && plan->uid == 0 && plan->gid == 0)) return code;
    code = call(SYS_setgid, plan->gid, 0, 0);
    return code ? code : call(SYS_setuid, plan->uid, 0, 0);
}

static void become(struct plan *plan, const i32 *streams, i32 errors) {
    u32 *groups = (u32 *)(plan + 1);
    u64 *limits = (u64 *)(groups + ((plan->group_count + 1) & ~1U));
    u64 lists = 8 * ((u64)plan->arg_count + plan->env_count + plan->place_count + 3);
    char **argv = (char **)call6(SYS_mmap, 0, (i64)lists, 3, 0x22, -1, 0);
    char **env = argv + plan->arg_count + 1, **places = env + plan->env_count + 1;
    char *cwd = (char *)(limits + 2 * plan->limit_count), *at = cwd;
    i64 code = 0, denied = 0;

    if ((i64)argv < 0 && (i64)argv > -4096) refuse(errors, STEP_START, (i64)argv);
    while (*at) at++;
    at = place_strings(at + 1, plan->arg_count, argv);
    at = place_strings(at, plan->env_count, env);
    place_strings(at, plan->place_count, places);

    call(SYS_setsid, 0, 0, 0);
    for (i32 i = 0; i < 3; i++) call(SYS_dup2, streams[i], i, 0);
    if (plan->flags & FLAG_TTY) {
        call(SYS_ioctl, 0, TIOCSCTTY, 0);
        if (plan->flags & FLAG_IDS) call(SYS_fchown, 0, plan->uid, -1);
    }
    for (u32 i = 0; i < plan->limit_count; i++) {
        u64 both[2] = {limits[2 * i + 1], limits[2 * i + 1]};
        code = call(SYS_setrlimit, limits[2 * i], both, 0);
        if (code) refuse(errors, STEP_LIMIT, code);
    }
    code = call(SYS_chdir, cwd, 0, 0);
    if (code) refuse(errors, STEP_CWD, code);
    if (plan->flags & FLAG_IDS) {
        code = take_ids(plan, groups);
        if (code) refuse(errors, STEP_USER, code);
    }
    for (i32 n = 1; n < 32; n++) dispose(n, 0);
    block(0);
    for (u32 i = 0; i < plan->place_count; i++) {
        code = call(SYS_execve, places[i], argv, env);
        if (code != -ENOENT && code != -ENOTDIR) denied = code;
    }
    refuse(errors, STEP_EXEC, denied);
}

/* --- the relay between a terminal and three pipes */

struct flow { i32 from, to; u32 start, end; char data[BUFFER]; };

static int open_flow(const struct flow *flow) { return flow->from >= 0 && flow->to >= 0; }

static void close_fd(i32 *fd) {
    if (*fd >= 0) call(SYS_close, *fd, 0, 0);
    *fd = -1;
}

static void pump(struct flow *flow, short in, short out) {
    if (flow->start == flow->end && flow->from >= 0 && (in & (POLLIN | POLLHUP | POLLERR))) {
        i64 n = call(SYS_read, flow->from, flow->data, BUFFER);
        if (n > 0) {
            flow->start = 0;
            flow->end = (u32)n;
        } else if (n != -EAGAIN && n != -EINTR) {
            flow->from = -1;
        }
    }
    if (flow->start < flow->end && flow->to >= 0 && (out & (POLLOUT | POLLERR | POLLHUP) || in)) {
        i64 n = call(SYS_write, flow->to, flow->data + flow->start, flow->end - flow->start);
        if (n > 0) flow->start += (u32)n;
        else if (n != -EAGAIN && n != -EINTR) flow->to = -1;
    }
}

static void set_flags(i32 fd) { call(SYS_fcntl, fd, 4 /* SETFL */, O_NONBLOCK); }

static void resize(i32 *control, i32 master) {
    unsigned short size[2];
    i64 n = call(SYS_read, *control, size, sizeof size);
    if (n == sizeof size) {
        struct winsize window = {size[0], size[1], 0, 0};
        call(SYS_ioctl, master, TIOCSWINSZ, &window);
    } else if (n != -EAGAIN && n != -EINTR) {
        close_fd(control);
    }
}

static void relay(i32 master, const i32 *pipes) {
    struct flow in = {pipes[0], master, 0, 0, {0}}, out = {master, pipes[1], 0, 0, {0}};
    i32 control = pipes[2];
    set_flags(in.from);
    set_flags(out.to);
    set_flags(master);
    set_flags(control);
    for (;;) {
        struct pollfd polls[5];
        /* Nobody has the terminal open any more and all is told; or nobody listens. */
        if (out.to < 0 || (out.from < 0 && out.start == out.end)) die();
        i32 in_full = in.start < in.end, out_full = out.start < out.end;
        polls[0] = (struct pollfd){control, POLLIN, 0};
        polls[1] = (struct pollfd){open_flow(&in) && !in_full ? in.from : -1, POLLIN, 0};
        polls[2] = (struct pollfd){open_flow(&in) && in_full ? master : -1, POLLOUT, 0};
        polls[3] = (struct pollfd){out.from >= 0 && !out_full ? master : -1, POLLIN, 0};
        polls[4] = (struct pollfd){out.to, out_full ? POLLOUT : 0, 0};
        call(SYS_poll, polls, 5, -1);
        if (polls[0].revents) resize(&control, master);
        if (open_flow(&in)) pump(&in, polls[1].revents, polls[2].revents);
        if (polls[4].revents & POLLERR) out.to = -1;
        else pump(&out, polls[3].revents, polls[4].revents);
    }
}

/* --- a reaper */

static i64 open_terminal(const struct plan *plan, i32 *slave) {
    i32 unlock = 0;
    struct winsize window = {(unsigned short)plan->rows, (unsigned short)plan->cols, 0, 0};
    i64 master = call(SYS_open, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC, 0);
    if (master < 0) return master;
    call(SYS_ioctl, master, TIOCSPTLCK, &unlock);
    call(SYS_ioctl, master, TIOCSWINSZ, &window);
    *slave = (i32)call(SYS_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return *slave < 0 ? *slave : master;
}

/* Reap what has ended until nothing is left below. */
static void reap(i32 command, i32 status) {
    for (;;) {
        i32 how = 0;
        i64 pid = call4(SYS_wait4, -1, &how, 0, 0);
        if (pid < 0 && pid != -EINTR) return;
        if (pid == command) tell(status, 'E', how);
    }
}

static void be_reaper(i32 plan_fd, i32 status, u32 flags, i32 *streams) {
    i32 errors[2], failure = 0;
    i64 code, command;

    call(SYS_setsid, 0, 0, 0);
    call6(SYS_prctl, 36 /* SET_CHILD_SUBREAPER */, 1, 0, 0, 0, 0);
    code = call(SYS_pipe2, errors, O_CLOEXEC, 0);
    command = code < 0 ? code : call(SYS_fork, 0, 0, 0);
    if (command == 0) {
        i64 size = call(SYS_lseek, plan_fd, 0, 2);
        i64 all = call6(SYS_mmap, 0, size, 3, 2 /* PRIVATE */, plan_fd, 0);
        if (all < 0 && all > -4096) refuse(errors[1], STEP_START, all);
        become((struct plan *)all, streams, errors[1]);
    }
    close_fd(&plan_fd);
    for (i32 i = 0; i < 3; i++) close_fd(&streams[i]);
    if (command < 0) {
        tell(status, 'F', (STEP_START << 16) | (i32)-command);
        tell(status, 'G', 0);
        die();
    }
    close_fd(&errors[1]);
    while ((code = call(SYS_read, errors[0], &failure, sizeof failure)) == -EINTR) {}
    close_fd(&errors[0]);
    if (code == sizeof failure) tell(status, 'F', failure);
    else if (flags & FLAG_ANNOUNCE) tell(status, 'S', (i32)command);
    reap(code == sizeof failure ? 0 : (i32)command, status);
    tell(status, 'G', 0);
    die();
}

/* --- the pod root */

static i32 reach(void) {
    struct { unsigned short family; char name[11]; } address = {1, "\0ramify-pod"};
    i32 sock = (i32)call(SYS_socket, 1, 5 | O_CLOEXEC, 0);
    if (sock >= 0 && call(SYS_connect, sock, &address, 13) < 0) close_fd(&sock);
    return sock;
}

/* A request and its descriptors; the kind of request, or 0 at the end of the line. */
static char receive(i32 sock, i32 *fds) {
    char kind = 0;
    struct iov iov = {&kind, 1};
    struct control control = {0, 0, 0, {0}};
    struct msg msg = {0, 0, &iov, 1, &control, sizeof control, 0};
    i64 n = call(SYS_recvmsg, sock, &msg, 0x40000000 /* CMSG_CLOEXEC */);
    for (i32 i = 0; i < 5; i++) fds[i] = -1;
    if (n == -EINTR || n == -EAGAIN) return '-';
    if (n <= 0) return 0;
    if (msg.control_size > 16 && control.level == 1 && control.kind == 1)
        for (u32 i = 0; i < (control.size - 16) / 4 && i < 5; i++) fds[i] = control.fds[i];
    return kind;
}

/* Fork a reaper, and with a terminal its relay. 0, or what went wrong. */
static i64 start(i32 *fds, i32 sock, i32 signals) {
    struct plan plan;
    i32 slave = -1, master = -1, terminal[3];
    i64 code = call4(SYS_pread, fds[0], &plan, sizeof plan, 0);
    if (code < 0) return code;
    if (plan.flags & FLAG_TTY) {
        code = open_terminal(&plan, &slave);
        if (code < 0) return code;
        master = (i32)code;
        for (i32 i = 0; i < 3; i++) terminal[i] = i ? (i32)call(SYS_fcntl, slave, 1030, 3) : slave;
    }
    code = call(SYS_fork, 0, 0, 0);
    if (code == 0) {
        close_fd(&sock);
        close_fd(&signals);
        close_fd(&master);
        if (plan.flags & FLAG_TTY) for (i32 i = 2; i < 5; i++) close_fd(&fds[i]);
        be_reaper(fds[0], fds[1], plan.flags, plan.flags & FLAG_TTY ? terminal : fds + 2);
    }
    if (plan.flags & FLAG_TTY) {
        for (i32 i = 0; i < 3; i++) close_fd(&terminal[i]);
        if (code > 0 && call(SYS_fork, 0, 0, 0) == 0) {
            close_fd(&sock);
            close_fd(&signals);
            close_fd(&fds[0]);
            relay(master, fds + 2);
        }
        close_fd(&master);
    }
    return code < 0 ? code : 0;
}

static void serve(i32 *sock, i32 signals) {
    i32 fds[5];
    char kind = receive(*sock, fds);
    if (kind == 0 || kind == 'R') close_fd(sock);
    if (kind == 'S') {
        i64 code = start(fds, *sock, signals);
        if (code < 0) {
            tell(fds[1], 'F', (STEP_START << 16) | (i32)-code);
            tell(fds[1], 'G', 0);
        }
    }
    for (i32 i = 0; i < 5; i++) close_fd(&fds[i]);
}

static void run(void) {
    i32 signals, sock;
    block(MASK(SIGCHLD) | MASK(SIGUSR1));
    for (i32 n = 1; n < 32; n++)
        if (n == SIGHUP || n == SIGINT || n == SIGTERM || n == SIGPIPE) dispose(n, 1);
    call(SYS_umask, 022, 0, 0);
    signals = signal_fd(MASK(SIGCHLD) | MASK(SIGUSR1));
    sock = reach();
    for (;;) {
        struct pollfd polls[2] = {{signals, POLLIN, 0}, {sock, POLLIN, 0}};
        u32 seen[32] = {0};
        call(SYS_poll, polls, 2, -1);
        while (call(SYS_read, signals, seen, sizeof seen) > 0)
            if (seen[0] == SIGUSR1 && sock < 0) sock = reach();
        while (call4(SYS_wait4, -1, 0, 1 /* NOHANG */, 0) > 0) {}
        if (polls[1].revents && polls[1].fd == sock) serve(&sock, signals);
    }
}

__attribute__((naked, noreturn)) void _start(void) {
    __asm__ volatile("xor %%ebp, %%ebp\n and $-16, %%rsp\n call *%0\n hlt" : : "r"(run));
}
