"""Predicts a run before it starts: parameters, FLOPs, tokens, memory, hours and cost. Does not import torch.

Start with `horizon` (one depth determines a whole run), then `parameters` and `flops` (exact counts), then `memory`
and `cost` (estimates, marked as such). `plan` combines them; training calls the same functions.

    horizon          depth -> width, heads, tokens, batch, steps; every derived value can be pinned
    derive           rates, weight decay and warm-up that a recipe leaves open, by the rules of config/scaling_rules.py
    stage_length     the batch and steps of the other stages, from their data (`published_sizes`: of the public sets)
    stage_step       a stage's training step as it is counted (`training_step`); `split`: its rows over ranks and
                     micro-batches, and whether blocks recompute their activations
    parameters       parameters by component
    flops            floating-point operations per token
    memory           bytes per rank, by component (`activations`: per layer; `zero3`: with sharded parameters;
                     `optimizer_state`: formats of the state)
    adapter          what an adapter adds; `teacher`: what a teacher adds
    hardware         device table: peak FLOP/s, memory, power; `measured_speed`: what this machine reached
    largest          the largest depth that each device trains
    communication    bytes and seconds of a step's communication: ring, tree, parameter server, ZeRO
    cost             FLOPs -> hours -> energy and money, at the speed that `utilization` assumes
    inference        weights, key/value cache and conversations per device
    compare          model families side by side
    plan             everything as one dictionary with stable keys; `text` prints it as a table
    scaling_laws     published scaling laws; `critical_batch`: loss against steps and batch size

A run within an amount of time or money:

    amount           what a user gives
    budget           which depth, stages, steps and batch fit, and which learn most
    stage_seconds    the time of each stage; `core_speed`: how fast one core does what is not training
    depth_choice     which of the depths that fit
    forecast         what the run will come to, from `past_runs` that are comparable (`comparable_runs`), as an
                     `interval`; `bits_forecast`: bits per byte, by a law (`shifted_loss`) that is fitted to them;
                     `exam_forecast`: exams, by a line
    budgeted_run     all of it as RUN/forecast.json keeps it; `forecast_text` prints it
"""
