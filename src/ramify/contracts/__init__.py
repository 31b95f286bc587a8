"""What every other room agrees on: Protocols and frozen records, no I/O.

```
contracts <- kernel <- engine <- envs <- edges, apps <- cli
contracts <- planes, tasks <- compose <- envs
```

Imports here: the standard library and msgspec, nothing else. One module per idea; import
from the module that owns a name (`from ramify.contracts.sandbox import Sandbox`).
"""
