"""What of a reward may be acted on: what the user's own recipe or command names. A folder is data.

A folder says of itself what it likes, also that it is of one's own run. So nothing in it allows anything: what it names
is compared with what the user named, and is refused where the user did not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from triptych.display import one_line
from triptych.engine.endpoint import address
from triptych.errors import RewardError
from triptych.reward.description import TEMPLATE, Description, TakenModel
from triptych.reward.judge import POLICY, TEMPLATES, JudgeReward
from triptych.reward.kind import RewardConfig
from triptych.reward.remote import RemoteReward
from triptych.reward.rules import FUNCTIONS, OwnFunction, RulesReward, UnitTests
from triptych.reward.taken import TakenReward


@dataclass(frozen=True, slots=True)
class Trust:
    """What the user named; by default nothing.

    Attributes:
        endpoints: addresses that may be sent text, each with the environment variable whose value goes with it.
        functions: Python code may run: the reward's own functions, and that of answers in the rule `tests`.
        templates: a judge's question may be a template that did not come with Triptych.
    """

    endpoints: frozenset[tuple[str, str | None]] = frozenset()
    functions: bool = False
    templates: bool = False

    @classmethod
    def in_recipe(cls, rewards: Sequence[RewardConfig]) -> Trust:
        """What a reward of the user's recipe names, given with its parts."""
        asked = [reward.endpoint for reward in rewards if isinstance(reward, JudgeReward | RemoteReward)]
        rules = [rule for reward in rewards if isinstance(reward, RulesReward) for rule in reward.rules]
        own = cls(
            frozenset((endpoint.url, endpoint.key_env) for endpoint in asked if endpoint is not None),
            any(isinstance(rule, OwnFunction | UnitTests) for rule in rules),
            any(isinstance(reward, JudgeReward) for reward in rewards),
        )
        taken = [
            cls.given(reward.allow_endpoint, reward.allow_key, reward.allow_functions, reward.allow_template)
            for reward in rewards if isinstance(reward, TakenReward)
        ]
        return cls(
            own.endpoints.union(*(trust.endpoints for trust in taken)),
            any(trust.functions for trust in (own, *taken)), any(trust.templates for trust in (own, *taken)),
        )

    @classmethod
    def given(
        cls, endpoints: Iterable[str] = (), keys: Iterable[str] = (), functions: bool = False, templates: bool = False
    ) -> Trust:
        """What the flags of a command name.

        Raises:
            RewardError: an endpoint is no address.
        """
        try:
            urls = [address(url) for url in endpoints]
        except ValueError as error:
            raise RewardError(f"--allow-endpoint {error}") from None
        sent = [None, *keys]
        return cls(frozenset((url, key) for url in urls for key in sent), functions, templates)

    def require(self, described: Description, models: Collection[str]) -> None:
        """Refuses what is not allowed, before anything is opened, asked or run.

        Args:
            models: the names of the models that the user gave.

        Raises:
            RewardError: with everything that would have happened, and the flag that allows each.
        """
        refused = [line for part in described.all() for line in self._refused(part, models)]
        if refused:
            raise RewardError("\n".join(["a folder is data; what it names is done only where you say so:", *refused]))

    def _refused(self, described: Description, models: Collection[str]) -> Iterator[str]:
        content = described.content
        if isinstance(content, JudgeReward | RemoteReward) and content.endpoint is not None:
            url, key = content.endpoint.url, content.endpoint.key_env
            if (url, key) not in self.endpoints:
                value = f" and the value of {key}" if key else ""
                flags = f"--allow-endpoint {url}" + (f" --allow-key {key}" if key else "")
                yield f"{described.file}: would send your text{value} to {url}; {flags} allows it"
        if isinstance(content, JudgeReward):
            if content.endpoint is None and content.model not in models:
                yield f"{described.file}: " + (
                    "asks the policy, which is not here; name the release that it is part of"
                    if content.model == POLICY else
                    f"would open the model {one_line(content.model)[:200]!r}; --allow-model FOLDER, "
                    "with a folder of this name, allows it"
                )
            if not self.templates and not _is_shipped(described.template):
                yield (
                    f"{described.folder / TEMPLATE}: would run as a template, and is none of Triptych's; read it, and "
                    "--allow-template allows it"
                )
        if isinstance(content, TakenModel) and not described.models and content.model not in models:
            yield (
                f"{described.file}: is the model {one_line(content.model)[:200]!r}, which is not in this folder; "
                "--allow-model FOLDER, with a folder of this name, opens it"
            )
        if isinstance(content, RulesReward) and not self.functions:
            for place, rule in enumerate(content.rules):
                if isinstance(rule, OwnFunction):
                    path = described.folder / FUNCTIONS / f"{place}.py"
                    yield (
                        f"{path}: would run {one_line(rule.function)[:200]}, with all that you yourself may do; "
                        "read it, and --allow-functions allows it"
                    )
                if isinstance(rule, UnitTests):
                    where = "without a sandbox, where this machine has none," if rule.unconfined else "in the sandbox"
                    yield (
                        f"{described.file}: would run Python code of answers {where} (rule tests); --allow-functions "
                        "allows it"
                    )


def _is_shipped(template: str) -> bool:
    """Whether it is one of Triptych's own, whatever its lines end with."""
    text = template.replace("\r\n", "\n")
    return any(path.read_text(encoding="utf-8") == text for path in sorted(TEMPLATES.glob("*.jinja")))
