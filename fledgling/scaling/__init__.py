"""The lab: ordinary runs, compared. How loss falls with size, data and compute, measured here.

Start with `sweep` (a grid of depths and budgets becomes runs of the one training loop, resumable), then `results`
(their directories become numbers), `fit` and `bowls` (numbers become laws with intervals), `analysis` (all of it
for every way to count parameters, and the largest budget predicted from the others), `page` (one HTML page).
`recover` tries the fitter on made-up runs whose law is known. `ablate` runs variants of one recipe in place of sizes,
`ablation` compares them, `ablation_page` shows it.

Everything but `sweep`, `ablate` and `check` reads files only and does without torch. Published laws are in
`fledgling.plan.scaling_laws`.
"""
