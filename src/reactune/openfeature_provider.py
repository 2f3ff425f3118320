"""The name under which apps import the OpenFeature provider of `client/openfeature.py`."""

from reactune.client.openfeature import ReactuneProvider as ReactuneProvider
