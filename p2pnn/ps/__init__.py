"""Parameter servers: shards of one flat space of parameters, and the workers that push gradients to them. Pure cores.

`space` and `sharding` say where a parameter lies; `consistency` what a run promises; `shard` is one shard's state machine
(with `inbox`, `guard`, `roster`, `versions`, `answers`), `worker` a model replica's side of all shards; `compression` what
travels.
"""
