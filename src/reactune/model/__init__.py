"""The base model, and the one way in which its prompts are made, in training and in serving.

`files` finds the model and estimates what training it takes; `context` cleans and shortens what an
app logs; `prompt` makes the prompt of it, and the prompt folder of a version; `logprobs` scores
texts under a model.
"""
