from __future__ import annotations

import pytest

from tests.chaos.check import (
    INTERRUPTED,
    NO_SUCH_TOOL,
    UNDELIVERED,
    Fate,
    Findings,
    Prompt,
    Said,
    calls_by_session,
    check_history,
    check_model_calls,
    longest_gap,
    prompt_text,
    tag_of,
)

SESSION = "chaos-1-a"


def asked(number: int, session: str = SESSION) -> Said:
    return Said(True, prompt_text(session, number, "[[chunks 3]]"))


def answer(number: int, more: str = "") -> Said:
    return Said(False, f"echo: {prompt_text(SESSION, number)} [user messages: {number}]{more}")


def turns(*numbers: int) -> list[Said]:
    return [said for number in numbers for said in (asked(number), answer(number))]


def acknowledged(*numbers: int) -> list[Prompt]:
    return [Prompt(number, Fate.ACKNOWLEDGED) for number in numbers]


def check(prompts: list[Prompt], history: list[Said]) -> dict[str, object]:
    return check_history(SESSION, prompts, history).to_dict()


def test_a_tag_survives_in_prompt_and_answer() -> None:
    assert tag_of(asked(12).text) == (SESSION, 12)
    assert tag_of(answer(12).text) == (SESSION, 12)
    assert tag_of("hello") is None


def test_a_whole_history_has_no_findings() -> None:
    findings = check_history(SESSION, acknowledged(1, 2, 3), turns(1, 2, 3))
    assert not findings
    assert findings.to_dict() == {}


def test_an_acknowledged_prompt_that_is_missing_is_lost() -> None:
    assert check(acknowledged(1, 2, 3), turns(1, 3)) == {"lost": [2]}
    assert check(acknowledged(1), []) == {"lost": [1]}


def test_a_prompt_nobody_acknowledged_may_be_missing_or_there_once() -> None:
    for fate in (Fate.UNKNOWN, Fate.REFUSED):
        prompts = [*acknowledged(1), Prompt(2, fate)]
        assert check(prompts, turns(1)) == {}
        assert check(prompts, turns(1, 2)) == {}
        assert check(prompts, [*turns(1), asked(2)]) == {}
        assert check(prompts, [*turns(1, 2), *turns(2)])["duplicated"] == [2]


def test_a_prompt_recorded_twice_is_duplicated_not_answered_twice() -> None:
    assert check(acknowledged(1, 2), turns(1, 2, 2)) == {"duplicated": [2]}


def test_a_prompt_after_a_later_one_is_reordered() -> None:
    assert check(acknowledged(1, 2, 3), turns(1, 3, 2)) == {"reordered": [2]}


def test_a_prompt_without_its_own_answer_is_unanswered() -> None:
    assert check(acknowledged(1, 2), [*turns(1), asked(2)]) == {"unanswered": [2]}
    # The answer to another prompt is none, nor one that came before the prompt.
    assert check(acknowledged(1, 2), [asked(1), answer(2), asked(2)]) == {"unanswered": [1, 2]}


def test_two_answers_to_one_prompt_are_found() -> None:
    assert check(acknowledged(1), [asked(1), answer(1), answer(1)]) == {"answered_twice": [1]}


def test_an_answer_quotes_what_the_tool_returned() -> None:
    prompts = [Prompt(1, Fate.ACKNOWLEDGED, tool_value="value-7")]
    quoting = answer(1, " [lookup returned: value-7]")
    assert check(prompts, [asked(1), quoting]) == {}
    assert check(prompts, [asked(1), answer(1, " [lookup returned: nothing]")]) == {
        "tool_lost": [1]
    }


@pytest.mark.parametrize("words", [INTERRUPTED, UNDELIVERED])
def test_a_call_that_the_cli_says_was_cut_is_told_apart(words: str) -> None:
    prompts = [Prompt(1, Fate.ACKNOWLEDGED, tool_value="value-7")]
    findings = check_history(SESSION, prompts, [asked(1), answer(1, f" [lookup {words}. Its")])
    assert findings.to_dict() == {"tool_interrupted": [1]}
    assert not findings


@pytest.mark.parametrize(("orphaned", "found"), [(True, "tool_interrupted"), (False, "tool_lost")])
def test_a_tool_may_be_missing_where_its_gateway_was_killed(orphaned: bool, found: str) -> None:
    prompts = [Prompt(1, Fate.ACKNOWLEDGED, tool_value="value-7", orphaned=orphaned)]
    said = [asked(1), answer(1, f" [lookup {NO_SUCH_TOOL}. Available")]
    assert check(prompts, said) == {found: [1]}


def test_what_nobody_sent_here_is_foreign() -> None:
    other = asked(1, "chaos-1-b")
    history = [*turns(1), other, Said(True, "hello"), asked(9)]
    assert check(acknowledged(1), history) == {
        "foreign": [other.text, "hello", asked(9).text],
    }


def test_findings_of_two_looks_are_joined_once() -> None:
    one = Findings(lost=[1, 2])
    one.join(Findings(lost=[2, 3], forks=["seen"]))
    assert one.to_dict() == {"lost": [1, 2, 3], "forks": ["seen"]}


def test_a_conversation_that_grows_has_no_forks() -> None:
    assert check_model_calls([]) == []
    assert check_model_calls([[1], [1, 2], [1, 2], [1, 2, 3]]) == []


def test_a_lost_prompt_is_no_fork() -> None:
    assert check_model_calls([[1], [1, 2], [1, 3], [1, 3, 4]]) == []


def test_a_prompt_that_is_sent_again_is_no_fork() -> None:
    assert check_model_calls([[1], [1, 2], [1, 2, 3], [1, 2], [1, 2, 3], [1, 2, 3, 4]]) == []


def test_two_copies_that_go_on_are_forks() -> None:
    forks = check_model_calls([[1], [1, 2], [1, 3], [1, 2, 4], [1, 3, 5]])
    assert len(forks) == 2
    assert forks[0] == "the model was shown [1, 3], then again [1, 2, 4]"


def test_an_old_copy_that_goes_on_behind_the_new_one_is_a_fork() -> None:
    assert len(check_model_calls([[1, 2], [1, 2, 3], [1, 2], [1, 2, 3, 4]])) == 1


def test_long_conversations_are_shown_by_their_ends() -> None:
    calls = [list(range(9)), [*range(8), 10], [*range(9), 11]]
    assert check_model_calls(calls) == [
        "the model was shown [..., 3, 4, 5, 6, 7, 10], then again [..., 4, 5, 6, 7, 8, 11]"
    ]


def test_model_calls_are_sorted_by_session() -> None:
    calls = [
        [asked(1).text],
        [asked(1, "b").text],
        ["title please"],
        [asked(1).text, "reminder", asked(2).text],
    ]
    assert calls_by_session(calls) == {SESSION: [[1], [1, 2]], "b": [[1]]}


def test_the_gap_is_the_longest_silence_that_begins_around_the_fault() -> None:
    times = [0.0, 3.0, 3.1, 3.2, 5.0, 9.0]
    assert longest_gap(times, 3.05, 0.3) == 5.0 - 3.2
    assert longest_gap(times, 3.05, 0.0) == 3.1 - 3.0
    assert longest_gap(times, 9.0, 1.0) is None
    assert longest_gap([], 1.0, 1.0) is None
