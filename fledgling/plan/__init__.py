"""What a run will be, before it runs: parameters, FLOPs, tokens, memory, hours and cost, without torch.

Start with `horizon` (the one dial: a depth becomes a whole run), then `size` and `flops` (exact), then
`memory` and `cost` (estimates, and called so). `plan` puts them together; training calls the very same
functions.

    horizon   depth -> width, heads, tokens, batch, steps; every derived value can be pinned
    size      parameters by component
    flops     floating-point operations a token
    memory    bytes a rank, by component
    hardware  a few devices: peak FLOP/s and memory
    comm      bytes and seconds of a step's communication: ring, tree, parameter server, ZeRO
    cost      FLOPs -> hours -> money
    plan      all of it, as one dictionary with stable keys
"""
