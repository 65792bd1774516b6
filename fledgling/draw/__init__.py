"""Drawing: numbers become charts and pages that stand alone. Nothing here knows what the numbers mean.

Start with `chart.py` (lines, dots and bands as inline SVG), then `page.py` (a template, the style and the charts as
one HTML file without scripts). The report and the scaling lab bring the numbers.
"""
