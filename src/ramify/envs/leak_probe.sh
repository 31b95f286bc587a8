# Looks for the lines of $1/lines, and for files of the sizes in $1/sizes, in all that can be read
# from here: files, compressed files and archives, and all objects of git, reachable or not. With
# $2, only in what came or changed within so many minutes.
# Prints: P place, L line in it, X digest and place, N what was not looked into, D part that is done.
d=$1 since=$2 root=${RAMIFY_ROOT:-/} LC_ALL=C
export LC_ALL
has() { command -v "$1" >/dev/null 2>&1; }
for tool in find grep awk xargs sort head od tr sed; do
    has $tool || { printf 'N\tanything: no %s\n' $tool; exit 0; }
done
w=$(mktemp -d 2>/dev/null) || { printf 'N\tanything: no place to write to\n'; exit 0; }
a=
printf 'x\n' | grep -aq x 2>/dev/null && a=-a
top=${root%/}
look() {
    find "$root" \( -path "$top/proc" -o -path "$top/sys" -o -path "$top/dev" -o -path "$d" \
        -o -path "$w" \) -prune -o ${since:+-cmin "-$since"} "$@" 2>/dev/null
}
lines_of() { # of what comes in, as what lies at $1
    grep -ohF $a -f "$d/lines" 2>/dev/null | sort -u | head -n 1000 | sed 's/^/L	/' |
        { IFS= read -r first && printf 'P\t%s\n%s\n' "$1" "$first" && cat; }
}

look -type f -size -131072 -print0 >"$w/files"
xargs -0 grep -lF -f "$d/lines" -- <"$w/files" 2>/dev/null | head -n 500 |
    while IFS= read -r f; do lines_of "$f" <"$f"; done
printf 'D\tfiles\n'

if [ -s "$d/sizes" ]; then
    if has sha256sum; then
        sizes=$(cat "$d/sizes") xargs -0 sh -c \
            '[ $# = 0 ] || find "$@" -type f \( $sizes \) -exec sha256sum {} +' sh <"$w/files" 2>/dev/null |
            sed 's/^/X	/'
    else
        printf 'N\tcopies of files: no sha256sum\n'
    fi
fi
printf 'D\tcopies\n'

unzipped() {
    if has unzip; then unzip -p "$1"
    elif has python3; then
        python3 -I -c 'import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    for member in archive.infolist():
        shutil.copyfileobj(archive.open(member), sys.stdout.buffer)' "$1"
    fi 2>/dev/null
}
gz=$(printf '^\037\213\010') xz=$(printf '^\3757zXZ') zst=$(printf '^\050\265\057\375')
xargs -0 grep -l $a -e "$gz" -e "$xz" -e "$zst" -e '^BZh[1-9]1AY' -e '^PK[[:cntrl:]]' -- \
    <"$w/files" 2>/dev/null | grep -v "^$top/usr/share/\(doc\|man\|info\|locale\|i18n\)/" >"$w/packed"
awk 'END { if (NR > 500) print "N\t" NR - 500 " compressed files: too many" }' "$w/packed"
head -n 500 "$w/packed" |
    while IFS= read -r f; do
        case $(head -c 4 "$f" 2>/dev/null | od -An -tx1 | tr -d ' \n') in
        1f8b08*) t=gzip ;;
        fd377a58) t=xz ;;
        28b52ffd) t=zstd ;;
        425a68*) t=bzip2 ;;
        504b0304) t=unzip ;;
        *) continue ;;
        esac
        has $t || { [ $t = unzip ] && has python3; } || { printf 'N\t%s: no %s\n' "$f" $t; continue; }
        case $t in
        unzip) unzipped "$f" ;;
        *) $t -dc <"$f" 2>/dev/null ;;
        esac | head -c 67108864 | lines_of "$f"
    done
printf 'D\tarchives\n'

objects_of() { # all but directories, each with its name before it; $1: a directory of objects
    format=sha1
    grep -qis 'objectformat *= *sha256' "$1/../config" && format=sha256
    # A repository of our own, so that no configuration of theirs holds.
    [ -d "$w/$format" ] || git init -q --bare --template= --object-format=$format "$w/$format" ||
        git init -q --bare --template= "$w/$format"
    export GIT_DIR="$w/$format" GIT_OBJECT_DIRECTORY="$1"
    git cat-file --batch-all-objects \
        --batch-check='%(objecttype) %(objectname) %(objectsize)' >"$w/all"
    awk -v o="$1" 'NR == FNR { w[$1]; next } $2 in w { print "X\t" $2 "  git objects of " o }' \
        "$d/digests" "$w/all"
    awk -v o="$1" '$1 != "tree" && $3 < 1048576 { if ((n += $3) < 268435456) print $2; else left++ }
        END { if (left) print "N\t" left " objects of " o ": too many" >"/dev/stderr" }' \
        "$w/all" >"$w/names" 2>"$w/left"
    cat "$w/left"
    git cat-file --batch --buffer <"$w/names" | awk -v lines="$d/lines" -v where="$1" '
        BEGIN { while ((getline l < lines) > 0) want[l] }
        NF == 3 && $2 ~ /^(blob|commit|tag)$/ && length($1) >= 40 && $1 !~ /[^0-9a-f]/ {
            at = $1; told = 0; next
        }
        {
            s = $0; sub(/^[ \t+]+/, "", s); sub(/[ \t\r]+$/, "", s)
            if (!(s in want) || (at, s) in seen) next
            if (!told) print "P\tgit object " substr(at, 1, 12) " in " where
            told = seen[at, s] = 1
            print "L\t" s
        }'
}
look -type d -name objects -print | while IFS= read -r o; do
    [ -d "$o/pack" ] || [ -d "$o/info" ] || continue
    has git || { printf 'N\t%s: no git\n' "$o"; continue; }
    (objects_of "$o") 2>/dev/null
done
printf 'D\tgit\n'
rm -rf "$w"
