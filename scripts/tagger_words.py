"""Words and sentences of our own that the name tagger learns from, beside lists of names.

In a sentence, {p} stands for a person, {first}, {last} and {full} for parts and forms of a name,
{t} for a title, {j} for a job, {a} for a postal address, {k} for a street corner or a named road,
{c} for a place, {o} for an organisation, {g} for a nationality, {d} for a date or a year,
{i} for what somebody calls themselves on a network, {n} for a number, {w} for a common word, {v} and {u} for a verb and a noun that are names, too, {x} for that of a card or a paper, {h} for a telephone number, {e} for an e-mail or
web address.
"""


def words_in(text: str) -> tuple[str, ...]:
    """The words of a list that is written as one text."""
    return tuple(text.split())


def sentences_in(text: str) -> tuple[str, ...]:
    """The sentences of a list: one a line, or several between bars."""
    return tuple(text.strip().replace("\n", "|").split("|"))


TITLES = words_in(
    """
    Mr Mrs Ms Miss Mx Dr Prof Professor Doctor Sir Dame Lady Lord Herr Frau Madame Monsieur
    Señor Señora Don Doña Rev Reverend Father Sister Captain Major General Colonel Sergeant
    Lieutenant Judge Senator Governor Ambassador Fr Mme Mlle Sr Sra Dott Ing
    """
)

COMPANY_WORDS = words_in(
    """
    Inc Ltd LLC PLC Corp Corporation Company Group Holdings Partners Associates Bank Insurance
    Consulting Solutions Systems Technologies Labs Studios Media Foundation Institute University
    College School Hospital Clinic Museum Orchestra Society Association Union Committee Council
    Ministry Department Agency Airlines Motors Pharmaceuticals Energy Foods Brothers Sons GmbH
    AG KG SA SARL SpA BV NV AB Oy AS ApS Kft Zrt
    """
)

STREET_WORDS = words_in(
    """
    Street St Road Rd Avenue Ave Lane Ln Drive Dr Court Ct Place Pl Square Sq Boulevard Blvd Way
    Terrace Close Crescent Parkway Pkwy Highway Hwy Alley Trail Loop Circle Row Walk Mews Grove
    Gardens Hill Heights Park Quay Wharf Suite Apt Apartment Unit Flat Floor Building Box PO PSC
    APO FPO DPO strasse straße str gasse weg platz allee ring ufer rue avenue chemin place quai
    impasse calle avenida plaza paseo camino via viale piazza corso largo rua praça travessa
    ulica ul aleja utca út tér körút ulice náměstí třída gade vej gata gatan vägen väg vei veien
    gate katu tie tänav tee iela gatvė bulevardi laan straat weg plein kade dreef singel strada
    bulevardul cesta trg улица ул проспект οδός λεωφόρος sokak cadde mahallesi jalan gali
    """
)

DEMONYMS = words_in(
    """
    American British English Scottish Welsh Irish French German Spanish Italian Portuguese Dutch
    Belgian Swiss Austrian Danish Swedish Norwegian Finnish Icelandic Polish Czech Slovak
    Slovenian Hungarian Romanian Bulgarian Greek Turkish Cypriot Maltese Croatian Serbian
    Bosnian Albanian Macedonian Montenegrin Estonian Latvian Lithuanian Russian Ukrainian
    Belarusian Moldovan Georgian Armenian Azerbaijani Kazakh Uzbek Turkmen Tajik Kyrgyz
    Mongolian Chinese Japanese Korean Taiwanese Vietnamese Thai Laotian Burmese Malaysian
    Indonesian Filipino Singaporean Cambodian Indian Pakistani Bangladeshi Nepalese Bhutanese
    Afghan Iranian Persian Iraqi Syrian Lebanese Jordanian Israeli Palestinian Saudi Yemeni
    Omani Kuwaiti Qatari Emirati Egyptian Libyan Tunisian Algerian Moroccan Sudanese Ethiopian
    Eritrean Somali Kenyan Ugandan Tanzanian Rwandan Congolese Nigerian Ghanaian Ivorian
    Senegalese Malian Cameroonian Angolan Zambian Zimbabwean Namibian Mozambican Malagasy
    Canadian Mexican Guatemalan Honduran Salvadoran Nicaraguan Panamanian Cuban Jamaican Haitian
    Dominican Colombian Venezuelan Ecuadorian Peruvian Bolivian Chilean Argentinian Argentine
    Uruguayan Paraguayan Brazilian Australian Samoan Fijian Tongan Catalan Basque Kurdish
    Tibetan Arab Arabic Jewish Muslim Christian Catholic Protestant Buddhist Hindu Sikh European
    African Asian Latino Hispanic Bavarian Flemish
    """
)

SMALL_TALK = sentences_in(
    """
{first}, could you send me the notes?|hi {first}, are you free tonight?|Thanks {first}!
hey {first} its me again|Hello, my name is {full}.|I'm {full} and I need some help.|This is {full} speaking.
my name is {full}, what is yours?|im {first} btw|Who is {full}?|Is {first} coming too?|ask {first} first
Can I talk to {t} {last}?|I spoke with {full} last week.|{first} and {first} are late again.
Tell {first} that I said hello.|Have you met {full}?|Do you know where {first} lives?|I miss {first} so much
Happy birthday {first}!|omg {first} you are so funny|love you {first} xx|{full} is the best|i think {first} is right
{first} said she would be here by {n}.|What does {first} think about it?|{first} why did you do that?
Good morning {t} {last}, did you sleep well?|Dear {t} {last},|Dear {first},|Yours, {first}|Best regards, {full}
Kind regards\\n{full}|Sincerely,\\n{full}\\n{j}|Love, {first}|@{first} look at this|RT {first}: see you soon
It's {first}'s turn.|{first}'s mother called.|We are at {first}'s place.|I borrowed {last}'s bike.
My brother {first} moved to {c}.|my sister {first} works for {o}.|My boss, {full}, is away until Monday.
My wife {first} and I are expecting.|our son {first} starts school soon|her husband {first} is a {j}
His girlfriend is called {first}.|they named the baby {first}|everyone calls me {first}|Please call me {first}.
The account is under {full}.|It should be in my mother's name, {full}.|The card belongs to {full}.
I would like to change the name to {full}.|Please add {full} as a contact.|Book a table for {full} at eight.
My maiden name is {last}.|My surname is {last}.|first name {first}, last name {last}|You can ask for {first}.
who is playing {first} in the new movie?|{first} from {c} wins everything|I wish I was {first}
watching {full} videos all day|{full} is my favourite singer|is that {full} in the back?|{first} has great hair
I grew up in {c}.|I live in {c} now|We're flying to {c} on Friday.|Is it cold in {c}?|we love {c}!|greetings from {c}
I'm {g}, but I was born in {c}.|She is half {g}.|my {g} friend {first}|{c} is beautiful in autumn
Moving from {c} to {c} soon.|Anybody here from {c}?|stuck in {c} again|on my way to {c}|Next stop: {c}
I work at {o}.|She got a job with {o}.|{o} never answered my mail.|I ordered from {o} in {d}.
Has anyone tried {o}?|My account at {o} is blocked.|The people at {o} were kind.|I used to work for {o} in {c}
Come to {a}.|I live at {a}.|My new address is {a}.|send it to {a} please|we are at {a}, ring twice
Please ship it to {a} instead.|Could you deliver to {a}?|the party is at {a}|Meet me at {k}.|I'm on {k} right now
They moved to {a} in {d}.|The old address was {a}, the new one is {a}.|It is close to {k}.|turn left at {k}
What's your address? It's {a}|Where do you live? {a}|the bus stops at {k}|Our office is on {k}.|Park on {k}.
Call me on {h}, ask for {first}.|My number is {h} and my mail is {e}.|reach {first} at {e} or {h}
"""
)

# Posts as tools write them that put spaces around marks: `@ anna_k`, and places after an `at`.
SIGNS = sentences_in(
    """
@ {i} {w} {w} {w}|@ {i} @ {i} {w} {w} !|RT @ {i} : {w} {w} {w} .|@ {i} : {w} {w}|{w} {w} @ {i}|" @ {i} : {w} {w} "
. @ {i} {w} the {w} , {w} it|{first} and @ {i} {w} {w} tonight|thanks @ {i} for the {w} !|me and @ {i} at the {w}
@ {i} lol yes|@ {i} i know ! {w} {w} ?|@ {i} {first} says hi|happy birthday @ {i} !|via @ {i}|{w} {w} ( @ {i} )
{w} {w} with @ {i} and @ {i}|who else saw @ {i} {w} ?|{w} by @ {i} # {w}|@ {i} , @ {i} : {w} {w} {w}
{w} @ {c}|{w} {w} ( @ {o} )|{w} @ {o} tonight|dinner @ {c} with {first}|I 'm at {o} ( {c} )|live @ {c} !
{w} @ {n}|{w} @ noon|{w} @ home|lunch @ work , then {w}|meet @ the {w}|{n} {w} @ {n} each|see you @ {n} pm|{w} @ night
{w} @ school|{w} @ the gym|{w} @ midnight|{w} @ lunch|{w} @ dinner|{w} @ the office|not @ all|@ least {n} {w}|{w} @ its best
Walk @ {n} , {w} @ {n}|Gym @ {n}|Yoga @ the park|{w} class @ {n}:30|Read @ bedtime|Stretch @ your desk|{n} tickets @ {n} each
# {w} {w} {w}|{w} # {w} # {c}|#{c} {w} {w}|{w} {w} #{w}|#{w} {first} {w} the {w}|# {c} : {w} {w}|{full} ( @{i} ) {w}
"""
)

REPORTS = sentences_in(
    """
{full} was born in {c} in {d}.|{full} ({d}) was a {g} {j}.|{full}, a {j} from {c}, won the prize.
{t} {last} told reporters in {c} that the plan had failed.|{full}, {j} at {o}, said the numbers were wrong.
According to {full}, {j} of {o}, sales rose by {n} percent.|"It is a start," said {full}.|"No," {last} said.
{last} joined {o} in {d} as a {j}.|{o} named {full} its new {j}.|{o} was founded in {c} by {full} and {full}.
{o}, based in {c}, makes toys.|Shares of {o} fell after {full} resigned.|{o} will close its office in {c}.
The {g} government sent {full} to {c}.|The {g} team beat {c} on Sunday.|A court in {c} acquitted {full}.
Police in {c} arrested a {g} man named {full}.|{full} will meet {full} in {c} on Monday.|{c} and {c} signed a treaty.
{full} and {full} co-founded {o}.|The book by {full} was translated by {full}.|In {d} {last} moved to {c}.
{full} plays {first} in the film directed by {full}.|Written by {full} and sung by {full}, the song was a hit.
The album was recorded in {c} with {full} on drums.|{last}'s second novel is set in {c}.|critics loved {last}'s early work
{full}'s lawyer declined to comment.|Fans of {full} waited outside {o}.|{full} leads {full} by two points.
The funeral of {full} was held in {c}.|{full} succeeded {full} as {j}.|{t} {full} opened the exhibition.
Researchers at {o} in {c} found it.|A study by {full} of {o} shows the opposite.|{o} and {o} are to merge.
Last year {o} sold its {g} branch to {o}.|{last}, who lives in {c}, is a {j}.|{full} studied law in {c}.
Before that, {last} was a {j} for {o}.|{t} {last} is a {j} in {c}.|Former {j} {full} disagrees.|Ask {j} {full}.
The trial of {full} began in {d}.|{full} of {c} scored twice.|{first} {last} is survived by his wife {first}.
He was named after {full}.|The {last} family owns {o}.|The {last} brothers, {first} and {first}, opened a bakery.
Why {full} left {o}|How {full} changed {c}|{full} sues {o}|{g} {j} {full} dies|Watch {first} dance|{last} to visit {c}
A bridge in {c} collapsed.|The river flows from {c} to {c}.|Trains between {c} and {c} are late.|North {c} is flooded.
Rain in southern {c}, sun in {c}.|The road to {c} is closed.|The mayor of {c}, {full}, apologised.|Made in {c}.
The shop at {a} was robbed.|The house at {a} burnt down in {d}.|A flat at {a} sold for {n}.|The protest blocked {k}.
The concert hall on {k} reopens in {d}.|They lived at {a} until {d}.|He was last seen near {k}.
The {o} Prize went to {full}.|The {o} quartet played in {c}.|{o} manager {full} was dismissed.|a spokesman for {o}
"""
)

FORMS = sentences_in(
    """
{c}|{c}|{c}|{c}|{c}|{c}|City: {c}|Town: {c}|Location: {c}|city {c}|{c} or {c}
Name: {full}\\nAddress: {a}\\nPhone: {h}|Patient: {full}, {n} years|Customer {full}, {c}|Contact: {full} ({e})
{full}\\n{a}|{full}\\n{j}\\n{o}\\n{a}|{full}\\n\\n{a}\\n\\nPhone: {h}\\nMail: {e}|{full}, {j}, {o}|{o}\\n{a}\\n{h}
From: {full}\\nTo: {full}\\nSubject: lunch|Attendees: {full}, {full}, {full}|Signed by {full} in {c}, {d}
Ship to: {full}, {a}|Billing address: {a}|Invoice for {o}, {a}|cc {full}|Born: {d}, {c}|Place of birth: {c}
Nationality: {g}|Employer: {o}|Occupation: {j}|Title: {j}|Manager: {full}|Next of kin: {full}, {h}|Author: {full}
Name {last}, first name {first}|{last}, {first}|{last} {first}|{t} {full}|{t} {last}|{a}|{a}|{a}|{k}|{c}|{full}|{full}
Guest list:\\n- {full}\\n- {full}\\n- {first}|{first}: hello\\n{first}: hi!\\n{first}: who is there?|Q: {full}?\\nA: yes
{first}: {n} points\\n{first}: {n} points|Room {n}: {t} {last}|Driver: {full}. Destination: {a}.|Delivered to {full} at {a}.
Date: {d}\\nName: {full}\\nCity: {c}|User {full} logged in from {c}.|Appointment with {t} {last} on {d}.
> {full}\\n> {o}\\n> {a}|{full} <{e}>|Meeting with {full} ({o}) in {c}.|Witness: {full}, {j}, {c}.
Home: {h}\\nWork: {h}\\nStreet: {a}|{j}\\n{o}\\n{a}|Office: {a}|Lives at {a}, works for {o}.|Departure {c}, arrival {c}
"""
)

TASKS = sentences_in(
    """
call {first}|call {t} {last} about the lease|mail {full} the offer|book flight to {c}|lunch with {first}
buy a present for {first}|pick up {first} from school|pick {first} up at {k}|pay {t} {last}|write to {o}
remind {first} about {c}|finish report for {o}|visit {first} in {c}|dentist, {a}|ask {first} for the keys
return the drill to {first}|plan {first}'s birthday|review {last}'s draft|prepare talk in {c}|message {full}
Call {first} back today.|Write {first} a short note.|Take {first} for a walk.|Ring {t} {last} before noon.
Meet {first} and {first} at {k}.|Send the photos to {first}.|Thank {first} for the soup.|renew visa for {c}
Text {first} one line.|Invite {full} for tea.|Look up trains to {c}.|interview at {o}|parcel to {a}
"""
)

# Capitals that are nobody's name.
PLAIN = sentences_in(
    """
Where is the next ATM?|send me the PDF|My PIN is {n}|the TV is on|FAQ|ETA {n}|charge the USB stick|EU law|GDP fell
{w}|{w}|{w}|{w} {w}|{w} {w}|{w}.|- {w}\\n- {w}|{w}: {w}|The {w} {w} the {w}.|{w}?
{w}, {w} and {w}|{w} the {w}|{w}. {w}. {w}.|{w} {w} {w}|{w} your {w}|{n} {w}|{w} {n}|{n}
Step {n}: {w} the {w}|{w}/{w}
Room {n}.{n}, floor {n}, {n}:{n}.|Floor {n}, room {n}|Gate {n}, row {n}, seat {n}|Building {n}, {w} {n}|{n} miles, {n} stops|{n} m up, {n} km
Write the first line of your essay now.|Drink a glass of water.|Set a timer for {n} minutes.|Take a Walk
Close your eyes and Breathe.|See Chapter Two for details.|Section IV of the Act of {d} applies.|Terms and Conditions apply.
I use Windows and Linux.|The Internet is slow today.|Merry Christmas and a Happy New Year!|HELP! This is NOT funny.
Patience and Courage are virtues.|The Moon rises at {n}.|On Monday we start again.|In March it rains.|Easter is early.
Read the Manual.|WHAT A DAY|LOL OMG|I Love This Song|Best Video Ever|Try One Small Step|Start With Five Minutes
What is the balance of my account?|How do I reset my password?|Where can I see my orders?|Please block my card.
I lost my card {x}, please help.|My order number is {x}.|id {x}|What about card {x}?|Why was {x} charged?|{x} was stolen|Version {n} is out.|The code is {n}.|It costs {n} dollars.
Morning Routine: Stretch, Water, Plan|Top Ten Reasons To Smile|You Won't Believe What Happens Next|Free Shipping
This Is Why We Can't Have Nice Things|Here's What Scientists Found|A Simple Trick That Works|The Best Part Comes Last
Mom called twice.|Grandma is well.|The Queen waved.|God knows.|The President spoke.|The Pope was ill.|Dad is asleep
I was born on {d}.|He is {n} years old.|Between {d} and {d} nothing happened.|She turned {n} yesterday.
The Civil War ended in {d}.|World Cup final tonight|The Bible says so.|Act III, Scene 2|The Right to Work|Game Over
Open the mail, sort it, close it.|Put the phone in another room.|Go to bed at Ten.|Stand up, stretch, sit down.
Pick the hardest task first.|Note three good things.|Reply with Yes or No.|Press Enter.|Click Here|Sign Up Now
"""
)

# Words that are names, too, in sentences that name nobody. {v} is such a verb, {u} such a noun.
AMBIGUOUS = sentences_in(
    """
{v} the {w} before lunch.|{v} your {w} for {n} minutes.|{v} two {w} and stop.|{v} one more {w} today.|{v} it twice.
{v} a {w}, then {w}.|{v} up the {w}.|{v} less, {w} more.|{v} first, {w} later.|{v} every {w} once.|{v} {n} {w} this week.
{u} is a good start.|{u} for {n} minutes.|{u} before {w}, always.|{u} needs {n} minutes a day.|{u}: {n} of {n} done.
{u} and {w} go well together.|{u} or {w}? Pick one.|{u} tea, {n} minutes.|{u} walk tonight?|{u} first!|{u} {w} today.
More {u}, less {w}.|Try {u} with {w}.|Add {u} to the {w}.|A bit of {u} helps.|Make room for {u}.|{u}, {w} and {w}: start now.
{u} {w}, {n} {w}.|{u} {w}: {n} {w} each.|{u} {w} {w} {n} minutes.|{u} at the {w}? {w} the {w}.|{u} and {w} {w}: {w} {n}.
{w} {u}, {n} {w}, no {w}.|{u}-style {w}: {n} {w}.|{w}, {u} and {w} in the {w}.|{u} series, {w} {n}.|{w} to {u}, {n} miles.
{u} {w} {n} to {n}.|{u} {n}.{n} notes.|{u} {w} in {n} minutes.|{u} pages {n}-{n}.|Look for {u} at {n}:{n}.|{w} the {u}, {w} the {w}.
{u} in the morning, {w} at night.|{u} counts.|{u} won't wait.|No {u} today? {w} instead.|{u} week {n}: keep going.
"""
)
VERBS = words_in(
    """
    Mark Chase Cook Bill Rob Drew Skip Pat Sue Nick Jack Grant Frank Wade Pierce Lance Chuck Hunt
    Reed Carry Mary Josh Jimmy Peg Bob Hank Will Trace Dash Don Harry Pitch Pluck Rally Dunk
    Ward Shepherd Marshal Tuck Rusk Buzz Clip Heath Tap Hope Bond Nip Trey Ty Spike Flip Curt
    """
)
NOUNS = words_in(
    """
    Joy Hope Faith Grace Rose Ivy Lily Iris Violet Daisy Heather Olive Ginger Basil Sage Rosemary
    Pepper Amber Ruby Pearl Crystal Jade Opal Dawn Eve Summer Autumn April May June August Sky
    Star Storm River Brook Cliff Glen Forest Stone Wood Hill Park Young Long Sharp Strong Swift
    Walker Turner Carter Fisher Piper Porter Page Parker Tanner Taylor Mason Hunter Baker Smith
    Butler Sandy Rusty Misty Penny Buck Charity Patience Harmony Melody Mercy Honor Victor King
    Prince Bishop Judge Major Dean Earl Duke Gene Jean Jersey China Turkey Chile Jordan Florence
    Austin Sydney Virginia Dallas Madison Miles Chance Art Ray Max Rich Max Norm Bay Cash Chip
    Ace Angel Bliss Clay Coral Destiny Dusty Fern Hazel Holly Iron Lake Lark Laurel Maple Marina
    Martin Jay Phoebe Wren Merle Birdie Drake Finch Crane Orion Leo Virgo Aries Luna Aurora Venus
    Florence Georgia Paris Lima Brazil Chelsea Camden Derby Cheddar Java Kent Lincoln Nelson
    Earl Grey Dale Dell Moss Reed Fern Clover Aspen Rowan Juniper Poppy Tulip Cherry Peaches
    Newton Pascal Watt Taylor Mason Cooper Potter Sawyer Weaver Carpenter Shepherd Gardner
    Ash Birch Bush Field Flint Frost Gale Snow Wolf Fox Bear Crow Hawk Swan Pike Salmon Bass
    Myrtle Ocean Piper Poppy Rain Raven Robin Rocky Saffron Sonny Stormy Trinity Winter Wren
    """
)
