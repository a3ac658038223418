"""Who a node is and who may come in: keys, the cluster's authority, tokens, and how guesses are slowed. Nothing here does I/O."""
