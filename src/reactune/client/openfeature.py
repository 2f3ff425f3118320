"""The router as an OpenFeature provider; needs the extra `openfeature`."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError, TargetingKeyMissingError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata

from reactune.client.router import Decision, Router
from reactune.privacy.user_ids import IdError

FLAG = "tip-generator"
Value = TypeVar("Value")


class ReactuneProvider(AbstractProvider):
    """Flag `tip-generator`: the arm as text, the version as a number, both with the exposure.

    The targeting key is the user id; under unit `tip`, the attribute `tip_id` names the tip. The
    flag's metadata holds the exposure's columns: arm, propensity, unit and rollout.
    """

    def __init__(self, router: Router, *, flag: str = FLAG) -> None:
        super().__init__()
        self._router, self._flag = router, flag

    def get_metadata(self) -> Metadata:
        """The provider's name."""
        return Metadata(name="reactune")

    def shutdown(self) -> None:
        """Stop reading the rollout."""
        self._router.close()

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        """The arm: `champion` or `challenger`."""
        decision = self._decide(flag_key, evaluation_context)
        return _details(decision.arm, decision)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        """The number of the version that answers."""
        decision = self._decide(flag_key, evaluation_context)
        return _details(decision.model_version, decision)

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """Whether the challenger answers."""
        decision = self._decide(flag_key, evaluation_context)
        return _details(decision.arm == "challenger", decision)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[Any] | Mapping[str, Any],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[Any] | Mapping[str, Any]]:
        """The exposure's columns."""
        decision = self._decide(flag_key, evaluation_context)
        return _details(decision.exposure(), decision)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> NoReturn:
        """No value of this flag is a float."""
        raise TypeMismatchError(f"{self._flag} is a text, an integer, a boolean or an object")

    def _decide(self, flag_key: str, context: EvaluationContext | None) -> Decision:
        if flag_key != self._flag:
            raise FlagNotFoundError(f"the only flag is {self._flag}")
        if context is None or not context.targeting_key:
            raise TargetingKeyMissingError("the targeting key is the user id; give one")
        try:
            return self._router.decide(
                context.targeting_key, tip_id=str(context.attributes.get("tip_id", ""))
            )
        except IdError as error:
            raise TargetingKeyMissingError(str(error)) from error


def _details(value: Value, decision: Decision) -> FlagResolutionDetails[Value]:
    metadata = {name: part for name, part in decision.exposure().items() if part is not None}
    return FlagResolutionDetails(
        value,
        variant=decision.arm,
        reason=Reason.SPLIT if decision.propensity < 1 else Reason.STATIC,
        flag_metadata=metadata,
    )
