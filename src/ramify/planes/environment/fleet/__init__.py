"""The topology `shared-fleet`: long-lived services outside the sandboxes of the tasks.

Once, for all rollouts of a manifest, with the services started and healthy in `sandbox`:

    fleet = make_fleet(manifest.environment.state, [5432, 6379, 8001], sandbox, book, clock)
    await fleet.sweep()                              # what a dead engine left

For each rollout:

    member = await fleet.join(task_sandbox, rollout_id, seconds=3600)
    ...                                              # member.variables, member.lease
    await fleet.leave(member)

`join` leases an account, makes its databases from their templates, and opens the services' ports
inside the task's sandbox; `leave` undoes all of it. `make_fleet` (make.py) goes by the manifest; a
`Fleet` (joining.py) of other parts is put together by hand from `PostgresTasks`, `RedisTasks` and
`SqliteTasks` (tenants.py) or a `TaskDatabase` of one's own, and a `FileAccountBroker`
(accounts.py). A tenant's database is snapshot and put back, without the others, by the driver of
`postgresql:///<PGDATABASE>` in the fleet's sandbox (state/make.py). Contracts: contracts/fleet.py.
"""
