"""What the four scripts share. Each package imports only from those above it, and a test checks this:

articles language errors cli files outputs processes runinfo page     the record; plumbing
models/       what a model directory holds
statistics/   arrays in, numbers out
scoring/      articles in, P(commerce) out
splits/       scored articles in, train, validation and test sets out; an audit of any splits
training/     articles and a base model in, a model directory out
evaluation/   model directories and labelled articles in, results and a choice out
benchmark/    a model directory and articles in, the cheapest faithful way to run it out
"""
