"""The contracts of state drivers, under the name that this plane knows them by."""

from ramify.contracts.drivers import DriverWorld, StateDriver

__all__ = ["DriverWorld", "StateDriver"]
