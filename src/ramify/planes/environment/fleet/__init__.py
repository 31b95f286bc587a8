"""The topology `shared-fleet`: long-lived services outside the sandboxes of the tasks.

A manifest's way (host.py, world.py): `Fleets`, one for each engine, starts a manifest's services in
a sandbox of their own when the first rollout needs them; `FleetEnvironment` is a rollout's world:

    fleets = Fleets(keep)                            # ended with `aclose`, with the engine
    world = FleetEnvironment(manifest, fleets, home, revertible=False)
    await world.provision(task_sandbox, ctx)         # a place of its own in each service
    await world.teardown()                           # which is dropped

Below it, with the services started and healthy in `sandbox`:

    fleet = make_fleet(manifest.environment.state, [5432, 6379, 8001], sandbox, book, clock)
    await fleet.take_over()                          # what a dead engine left
    member = await fleet.join(task_sandbox, rollout_id, seconds=3600)
    ...                                              # member.variables, member.lease
    await fleet.leave(member)

`join` leases an account, makes its databases from their templates, and opens the services' ports
inside the task's sandbox; `leave` undoes all of it. `suspend` lets a member in no more, so that
others can `join` with copies of its places. `make_fleet` (make.py) goes by the manifest; a `Fleet`
(joining.py) of other parts is put together by hand from `PostgresTasks`, `RedisTasks` and
`SqliteTasks` (tenants.py) or a `TaskDatabase` of one's own, and a `FileAccountBroker`
(accounts.py). A tenant's places are snapshot and put back, without the others, by the drivers of
drivers.py. Contracts: contracts/fleet.py.
"""
