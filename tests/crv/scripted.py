"""A pool that answers by agent from lists, for the tests of the loop; says "ran out" by failing the test."""

import json
from collections import Counter

from crv.pool.base import Answer, PoolError, Request


class ScriptedPool:
    """`script`: agent -> answers in the order of asking; the last one repeats where `repeat` is set."""

    def __init__(self, repeat: bool = False, **script):
        self.script, self.repeat = script, repeat
        self.asked: list[Request] = []
        self.count: Counter[str] = Counter()

    async def generate(self, request: Request) -> Answer:
        self.asked.append(request)
        answers = self.script.get(request.agent, [])
        place = self.count[request.agent]
        self.count[request.agent] += 1
        if place >= len(answers):
            if not (self.repeat and answers):
                raise PoolError(f"the script has no answer number {place} of {request.agent}")
            place = -1
        answer = answers[place]
        return answer if isinstance(answer, Answer) else Answer(answer, model="m")

    async def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def statistics(self):
        return {}


def label(word: str) -> str:
    return json.dumps({"reason": "because", "label": word})
