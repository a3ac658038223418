"""Replication and failover of parameter-server shards, after PacificA (Lin et al. 2008), without its read leases.

`replica` has the idea and the rules, `configuration` says who may follow whom, `leases` is the table of data ranges that is
replicated in the same way. What is replicated is opaque here: updates are bytes with a number.
"""
