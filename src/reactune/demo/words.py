"""The words by which a reader of the demo recognises an action, a part of day, a wish.

Lists only, stemmed and matched in `reading.py`; they are this project's own.
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VERBS = _names(
    "add allow answer apply arrange ask avoid back bake batch begin block book break breathe "
    "bring brush buy call cancel carry catch celebrate change check chew choose clean clear "
    "close collect commit compare complete connect consider cook copy count create cut dance "
    "decide decorate dedicate delegate design dim disconnect discuss divide do document draft "
    "draw drink drop eat edit email embrace empty end engage enjoy ensure establish estimate "
    "explore fetch file fill find finish fix focus fold follow get give go grab group hand "
    "have help hold identify include interview invite join journal keep know learn leave let "
    "lie lift light limit list listen lock log look make manage mark massage meditate meet "
    "mix move mute name note offer open order organise organize pack park pause pay phone "
    "pick pitch place plan play polish pour practice practise prepare press print prioritise "
    "prioritize profile pull put reach read record reduce refill reflect register relax "
    "remember remind remove rename renew repair reply reserve reset rest restock return "
    "review reward ring rise roll rotate run save say scan schedule see send separate set "
    "shake share show sign sip sit skip sleep slow smile snack solve sort speak spend split "
    "spread stand start stay step stick stop store stretch study summarise summarize swap "
    "sweep switch take talk tell text thank think tidy tie track train treat trim try turn "
    "unplug update upgrade use visit wait wake walk warm wash watch water wear weed wipe wrap "
    "write"
)
NUMBERS = _names("one two three four five six seven eight nine ten fifteen twenty thirty")
LITTLE_WORDS = _names(
    "a an the of to in on for and or with your you is are be it this that at by from as about "
    "not more up down so if can will into out back new"
)
PARTS_OF_DAY = {
    "morning": _names("morning breakfast sunrise dawn wake coffee"),
    "noon": _names("noon midday lunch lunchtime"),
    "afternoon": _names("afternoon lunch tea snack"),
    "evening": _names("evening dinner supper tonight night sunset bed bedtime wind lights"),
}
WORDS_OF_KIND = {
    "focus": _names(
        "focus timer task distraction start finish phone desk quiet first step single block "
        "concentrate silence tab notification work attention begin complete mute"
    ),
    "break": _names(
        "break walk stretch breathe breath tea coffee rest window outside music relax pause "
        "fresh air eyes sit nap snack unwind recharge water"
    ),
    "health": _names(
        "water drink walk stretch sleep eat fruit vegetable breath breathe posture exercise "
        "healthy meal breakfast rest snack stairs shoulder hydrated move eyes health glass"
    ),
    "planning": _names(
        "plan list first before after then schedule priority prioritize order calendar "
        "deadline early time tomorrow next start block set step today"
    ),
    "social": _names(
        "friend friends call text message invite visit photo coffee family sister ask meet "
        "chat phone share send letter neighbour touch hello together note"
    ),
}
# Goals of settings and notes of free text, and what would serve them.
WORDS_OF_WISH = {
    "sleep more": _names("sleep bed bedtime nap rest night early"),
    "move more": _names("walk stretch move run bike exercise steps stairs stand dance outside"),
    "finish on time": _names("timer deadline schedule first start finish time minutes done"),
    "worry less": _names("breathe breath calm relax worry note slow list step rest"),
    "see friends more": _names("friend friends call text invite visit meet message together"),
    "eat better": _names("eat fruit vegetable meal breakfast lunch dinner cook snack water soup"),
    "bad sleep": _names("nap rest sleep bed early tired coffee night"),
    "noisy office": _names("quiet headphones noise door music silence room"),
    "stiff back": _names("stretch back stand walk shoulders posture sit"),
    "much to do": _names("first list one priority prioritize step timer small"),
    "no breakfast yet": _names("breakfast eat snack fruit toast"),
    "kids asleep": _names("quiet asleep kids calm evening"),
    "late train": _names("train wait ride late platform"),
    "sunny day": _names("sun sunny outside walk park"),
    "busy phone": _names("phone mute silent notifications airplane off"),
    "tired eyes": _names("eyes look screen window blink rest"),
    "rain outside": _names("rain umbrella inside indoor cosy warm"),
    "headache": _names("water rest dark head air break"),
    "low battery": _names("charge battery plug"),
    "quiet house": _names("quiet house silence home"),
    "sister in town": _names("sister"),
    "old friend moved away": _names("friend call letter write moved"),
}
