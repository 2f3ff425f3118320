"""One request for a tip, from the prompt to the exposure on disk, and the reports that follow.

A tip that is shown passed the guard, and its exposure is on disk before the answer is sent, or the
answer says that it is not. `tips` tells the story of a request; `guard` judges texts; `events`
writes many requests' rows in one transaction; `state` is what stays open between requests and
follows the rollout; `api_keys` are the keys that apps call the service with.
"""
