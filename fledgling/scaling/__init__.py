"""Scaling experiments: ordinary training runs, compared. How loss falls with size, data and compute.

    sweep              a grid of depths and budgets as resumable training runs; a check of a budget beyond it
    results            their directories as numbers; copies of a run count once
    settings           the settings of a folder of runs and of each run, compared by table and key
    fits               a loss surface with intervals
    isoflop            isoFLOP curves and the power laws of their minima, with intervals
    analysis           all fits for every way of counting parameters, the held-out budget, predictions
    sweep_page         the HTML page of a sweep
    ablation           variants of one recipe instead of sizes
    race               recipes, checkouts and other programs at equal time of training steps: text, turns, processes
    race_run           one run of a race
    race_results       its runs compared: intervals over seeds, curves
    inference_scaling  accuracy against the number of samples, and the coverage law
    recovery           tests the fits on synthetic sweeps of a known law

Only `sweep`, `race` and `race_run` import torch (`ablation` does when it trains); the others read files. Published
laws are in `fledgling.plan.scaling_laws`.
"""
