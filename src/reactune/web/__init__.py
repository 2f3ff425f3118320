"""HTTP in front of the service: a path and a typed body in, one call of the service, JSON out.

No answer, log line, metric or span repeats what was sent. `api` declares the paths; `schemas` are
their bodies; `openai_chat` is the same tip in OpenAI's form; `direct` leads tips and reactions past
the framework; `access` refuses requests before the service sees them, and words every refusal;
`telemetry` counts and logs; `server` runs processes.
"""
