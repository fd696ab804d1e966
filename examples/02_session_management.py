"""A conversation of several turns: one session in Flowise, one context here.

python examples/02_session_management.py [FLOW]
"""

from __future__ import annotations

import sys
import uuid

from flowise_or_stand_in import flowise_url

from genops_ctx import governance_context, instrument_flowise

TURNS = (
    "I cannot get into my account.",
    "No, I forgot my password.",
    "How long is the link valid?",
)


def main(flow: str = "customer-support-v1") -> None:
    session = f"example-{uuid.uuid4()}"
    with flowise_url() as url:
        flowise = instrument_flowise(url, team="help")

        with governance_context("conversation", user_id="user-123", budget="0.25") as conversation:
            for turn in TURNS:
                # sessionId carries the conversation in Flowise, and is attributed as session_id
                answer = flowise.predict_flow(flow, turn, sessionId=session)
                print(f"> {turn}\n{answer.get('text')}\n  ${answer.cost}")

            print("> And in one line, as it comes?")
            with flowise.predict_flow(flow, "Sum up", sessionId=session, stream=True) as stream:
                for event in stream:
                    if event["event"] == "token":
                        print(event["data"], end="", flush=True)
            print(f"\n  ${stream.cost}")

        print(f"\nThe conversation: ${conversation.total_cost}, {conversation.calls} calls")
        print("By session:", {name: str(cost) for name, cost in conversation.cost_by("session_id").items()})

        # Any API key may read and delete messages in Flowise, so mind who holds one.
        print("Stored messages:", len(flowise.get_chat_messages(flow, session)))
        print("Deleted:", flowise.delete_chat_messages(flow, session)["affected"])


if __name__ == "__main__":
    main(*sys.argv[1:])
