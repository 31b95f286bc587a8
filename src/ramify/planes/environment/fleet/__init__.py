"""The topology `shared-fleet`: long-lived services outside the sandboxes of the tasks.

    fleet = Fleet(
        sandbox,                                     # where the services run, started and healthy
        databases=[PostgresTasks(sandbox), RedisTasks(sandbox, password)],
        broker=FileAccountBroker(home / "accounts.json", accounts, clock),
        ports=[5432, 6379, 8001],                    # reached at 127.0.0.1 in each task's sandbox
    )
    await fleet.sweep()                              # once: what a dead engine left
    member = await fleet.join(task_sandbox, rollout_id, seconds=3600)
    ...                                              # member.variables, member.lease
    await fleet.leave(member)

`join` leases an account, makes its databases from their templates, and opens the services' ports
inside the task's sandbox; `leave` undoes all of it. Contracts: contracts/fleet.py.
"""
