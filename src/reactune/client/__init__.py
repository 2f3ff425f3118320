"""What an app in Python installs: tips and reports over HTTP, or routing in its own process.

A report that an outbox accepted reaches the service once, in order, also if the app is killed.
`http` holds the clients and the outbox; `router` decides as the service does, without a request;
`openfeature` offers the router as a provider of OpenFeature.
"""
