"""What dates, dates of birth and ages look like, in numbers and in words of nine languages."""

import re

MONTHS = """
    january jan february feb march mar april apr may june jun july jul august aug september sept
    sep october oct november nov december dec januar jänner februar märz mai juni juli oktober
    okt dezember dez janvier février mars avril juin juillet août septembre octobre novembre
    décembre enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre
    diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre januari
    februari maart mei augustus janeiro fevereiro março maio junho julho setembro outubro
    novembro dezembro
    """
LONGEST_FIRST = sorted(set(MONTHS.split()), key=lambda name: (-len(name), name))
MONTH = rf"(?=[jfmasondegv])(?:{'|'.join(LONGEST_FIRST)})\b\.?"
YEAR = r"(?:19|20)\d\d"
NUMERIC = rf"(?:{YEAR}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:{YEAR}|\d\d))"
CLOCK = r"(?:[ T]\d\d?:\d\d(?::\d\d)?)?"
DAY_FIRST = rf"\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of |de )?{MONTH}(?:,? (?:de )?\d{{4}})?"
MONTH_FIRST = rf"{MONTH} (?:{YEAR}|\d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)"
ANY_DATE = rf"(?:{NUMERIC}{CLOCK}|{DAY_FIRST}|{MONTH_FIRST})"

BORN = (
    r"(?:\bborn|\bbirth|\bd\.?o\.?b\b|\bbirthday|\bgeboren|\bgeb\.|\bgeburtstag|\bnée?\b|\bnaissance"
    r"|\bnacid[oa]|\bnacimiento|\bnat[oa]\b|\bnascita|\bnascid[oa]|\bgeboortedatum|\burodz\w+|\bfødt)"
)
BIRTHDATE = re.compile(
    rf"{BORN}(?:\W{{1,3}}\w{{1,10}}){{0,3}}?\W{{1,4}}(?P<value>{ANY_DATE}(?!\w)|\b{YEAR}\b)"
    rf"|(?P<this>{ANY_DATE}) is (?:my|his|her|their) birthday",
    re.I,
)

OLD = r"(?:years?(?: |-)old|years? of age|yrs?\.? old|y/?o\b|year-old|jahre? alt)"
AGE = re.compile(
    rf"\b\d{{1,3}}(?=(?: |-)?{OLD})"
    r"|(?:(?<=\baged )|(?<=\bage )|(?<=\bage: ))\d{1,3}\b"
    r"|(?<=\bturned )\d{1,3}\b(?! (?:percent|times))"
    r"|(?<=\bhe was )\d{2}\b(?=\W|$)|(?:(?<=\bi am )|(?<=\bi'm ))\d{2}\b(?=[.,!]|$)",
    re.I,
)
DATE = re.compile(
    rf"(?<![\w./-])(?:{ANY_DATE}|{YEAR}(?= ?\)|[ ,.;?!]|$)(?![./-]\d))(?![\w/-])", re.I
)
WEEKDAY = re.compile(r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b", re.I)
