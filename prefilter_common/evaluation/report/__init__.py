"""What people read of an evaluation.

In: the content of ``evaluation_results.json``. Out: the summary on the terminal and the HTML page. Does not belong
here: any computation of a figure.
"""
