"""Data set after LIMIT: documents of which every pair is the answer of one query, and distractors.

LIMIT (Weller et al., "On the Theoretical Limitations of Embedding-Based Retrieval") has texts such as "Ann Li
likes plums, sonnets and kites." and queries such as "Who likes kites?". Each query has two answers, another
pair than every other query, of as few documents as have so many pairs. The recipe is theirs; words and names
are ours.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.errors import InvalidInputError

_LIKED = """
alpacas anteaters antelopes armadillos badgers bats bears beavers bobcats buffaloes camels capybaras cats
cheetahs chimpanzees chinchillas chipmunks cougars cows coyotes deer dogs dolphins donkeys dormice elephants
elks ermines ferrets gazelles gerbils gibbons giraffes goats gophers gorillas guanacos hares hedgehogs
hippopotamuses horses ibexes impalas jackals jaguars kangaroos kudus lemmings lemurs leopards llamas lynxes
macaques manatees marmots martens meerkats mice moles mongooses monkeys moose muskrats narwhals ocelots
okapis orangutans orcas otters pandas panthers pigs platypuses ponies porcupines pumas quokkas rabbits
raccoons reindeer rhinoceroses sables seals sheep shrews skunks sloths stoats tamarins tapirs tigers
wallabies walruses warthogs weasels wildebeests wolverines wolves wombats zebras zebus albatrosses avocets
barbets blackbirds bluebirds bobolinks bulbuls bustards buzzards canaries cardinals chickadees chickens
condors coots cranes crows cuckoos curlews dunlins ducks eagles egrets emus falcons finches flamingos
frigatebirds fulmars gannets geese godwits goshawks grebes grouse gulls hawks herons hoopoes hornbills
ibises jackdaws jays kestrels kites kiwis kookaburras lapwings linnets loons lorikeets lyrebirds magpies
mallards martins merlins mynas nightingales nightjars nuthatches orioles ostriches owls oystercatchers
parakeets partridges peacocks pelicans penguins pheasants pigeons pipits plovers puffins quails ravens
redstarts roadrunners robins rooks sandpipers shearwaters shrikes skuas snipes spoonbills starlings storks
swallows swans tanagers terns thrushes titmice turnstones vireos vultures wagtails waxwings weavers
woodcocks woodpeckers anchovies anemones angelfish barnacles bream carp catfish clams cod conches corals
cowries crayfish cuttlefish eels flounders groupers haddock halibut herrings jellyfish lampreys limpets
lobsters mackerel minnows mollusks mullets mussels octopuses oysters perches pikes plankton pollock prawns
pufferfish salmon sardines scallops seahorses shrimps snappers sponges sprats squids stingrays sturgeons
swordfish tench trout tuna turbot urchins zander ants aphids bees bumblebees butterflies caterpillars
centipedes cockroaches crickets damselflies dragonflies earwigs fireflies fleas grasshoppers ladybirds
leafhoppers leeches lice locusts mayflies midges millipedes mites moths scarabs scorpions silkworms snails
spiders termites ticks weevils woodlice apples apricots bananas bilberries blackberries blackcurrants
boysenberries breadfruits cantaloupes cherries cloudberries coconuts crabapples cranberries currants dates
dragonfruits durians elderberries figs gooseberries grapefruits grapes honeydews huckleberries jackfruits
jujubes lemons limes lingonberries loganberries loquats lychees mandarins mangoes medlars melons mulberries
nectarines oranges papayas passionfruits peaches pears pineapples plantains plums pomegranates prunes
quinces raisins rambutans redcurrants salaks satsumas soursops sultanas tamarinds tangerines tayberries
yuzus artichokes arugula asparagus beans beetroots broccoli cabbages carrots cassava cauliflowers celeriac
celery chickpeas chicory collards courgettes cucumbers daikons edamame endives garlic gherkins horseradish
jicamas kohlrabi leeks lentils lettuces mushrooms okra onions parsnips peppers potatoes pumpkins radicchio
rhubarb romanesco rutabagas samphire scallions sorrel soybeans spinach sprouts swedes sweetcorn taro
tomatoes turnips wasabi watercress yams allspice anise basil bergamot caraway cardamom cayenne chamomile
chives cinnamon cloves coriander dill fenugreek ginger juniper lavender licorice lovage mace marjoram
mustard nutmeg oregano paprika peppermint rosemary saffron sage savory sesame spearmint sumac thyme turmeric
vanilla verbena baguettes baklava bibimbap biryani borscht bouillabaisse bruschetta burgers burritos
cannelloni caponata carpaccio casseroles ceviche chili chimichangas chowders couscous crepes croissants
croquettes curries dumplings empanadas enchiladas falafel fettuccine focaccia fondue fritters gazpacho
gnocchi goulash gratins gumbo gyoza haggis hummus kebabs kedgeree kimchi laksa latkes linguine macaroni
meatballs moussaka muesli nachos naan omelettes paella pakoras pancakes pastrami pickles pierogi pilaf pizza
polenta poppadoms porridge pretzels quiches raclette ramen ratatouille risotto rissoles rostis salads
sandwiches sashimi sauerkraut sausages shakshuka skewers soups souffles spareribs stews stroganoff sushi
tacos tagines tagliatelle tapas terrines toast tofu tortellini tortillas udon vindaloo waffles wontons
blancmange bonbons brioches brownies cakes candyfloss cannoli caramels chocolates churros cobblers compotes
crumbles cupcakes custards doughnuts flapjacks fudge gateaux gelato halva honey icing jam jellybeans
lollipops macaroons madeleines marmalade marzipan meringues molasses mousses nougat panettone parfaits
pastries pies pralines profiteroles puddings sherbet shortbread sorbets stollen sundaes syllabubs tarts
tiramisu trifles absinthe ale amaretto bourbon buttermilk cappuccinos chai champagne cocoa coffee cognac
cordials daiquiris eggnog espresso gin horchata kefir kombucha lager lattes lemonade limeade macchiatos
milkshakes mojitos oolong ouzo prosecco punch rum sake sangria seltzer sherry smoothies stout vermouth vodka
whiskey yogurt burrata butter camembert cheddar edam emmental feta ghee gouda gruyere halloumi manchego
mozzarella paneer parmesan pecorino quark ricotta roquefort stilton acorns amaranth barley buckwheat bulgur
chestnuts chia farro flax hemp macadamias millet oats pecans pistachios quinoa rice semolina sorghum spelt
teff wheat agapanthus alliums alyssums aquilegias asphodels asters astilbes azaleas bellflowers bluebells
bougainvilleas buttercups camellias campions carnations celandines clematis columbines coneflowers
cornflowers cowslips crocuses cyclamens daffodils daisies dandelions delphiniums edelweiss foxgloves
freesias fuchsias gardenias geraniums gladioli goldenrods gypsophila harebells heliotropes hellebores
hibiscuses hollyhocks hostas hyacinths hydrangeas impatiens jasmines jonquils lantanas larkspurs lilies
lobelias lotuses lupins marigolds mimosas monkshoods narcissi nigellas oleanders orchids pansies petunias
phloxes plumerias poinsettias poppies ranunculuses rhododendrons roses salvias scabiouses sedums snapdragons
snowdrops spiderworts sunflowers thistles trilliums tulips verbascums violas violets wisterias yarrows
zinnias acacias algae aloes aspens bamboos baobabs beeches birches bonsai boxwoods bromeliads cacti cattails
cedars cypresses dogwoods ebonies elms ferns firs ginkgos hawthorns hickories hollies hornbeams hops ivies
jacarandas kelp laburnums laurels lichens lindens liverworts mangroves maples mistletoes mosses nettles
palms papyrus pines poplars redwoods rowans rushes sagebrushes spruces sycamores tamarisks teaks vines
willows yews yuccas alabaster amazonite amber amethysts aquamarines azurite basalt beryls brass bronze
calcite carnelians chalcedony chromium citrines cobalt copper diamonds dolomite emeralds feldspar fluorite
fossils galena garnets gneiss gold granite graphite hematite iron jade jasper malachite marble meteorites
mica nickel obsidian onyx opals pearls pewter platinum pumice pyrite rubies sandstone sapphires schist
serpentine silver slate spinels steel tanzanite tin titanium tourmalines travertine tungsten turquoise
zircons angora batik brocade cashmere chiffon chintz corduroy cotton damask denim felt flannel gingham
hessian jacquard khaki leather linen lycra mohair nylon organza paisley poplin seersucker serge silk suede
tartan toile tulle tweed velvet viscose wool worsted anoraks balaclavas bandanas belts berets blouses
bonnets boots bowties braces brogues brooches caftans cardigans chinos cloaks clogs cravats cufflinks
culottes dresses earmuffs earrings espadrilles fedoras gloves goggles gowns handbags hats helmets hoodies
jackets jeans jodhpurs jumpers jumpsuits kilts leggings leotards loafers mittens monocles necklaces
nightgowns overalls pajamas parkas petticoats pinafores ponchos pullovers purses raincoats rings robes
sandals sarongs saris shawls shirts shoes shorts slippers smocks sneakers socks spectacles stilettos
stockings suits suspenders sweaters swimsuits tiaras tights togas trainers trousers turbans tuxedos
umbrellas veils waistcoats wallets wellingtons windcheaters adzes augers awls axes barometers bolts braziers
brooms brushes calipers chainsaws chisels clamps crowbars drills easels files funnels gauges gimlets glue
hammers hatchets hinges hoes hoses jigsaws knives ladders lathes looms machetes magnets magnifiers
microscopes mops nails needles paintbrushes pickaxes pincers pitchforks pliers protractors pulleys pumps
ratchets rivets rollers ropes sandpaper saws scalpels scissors screws scythes secateurs shears shovels
sieves sledgehammers spades spanners squeegees staplers stethoscopes stopwatches tapes telescopes
thermometers tongs trowels tweezers varnish vices wheelbarrows whetstones winches wrenches ashtrays baskets
bathtubs bedspreads benches blankets blinds bookcases bookends bowls cabinets candlesticks candles carpets
cauldrons chairs chandeliers chopsticks clocks coasters colanders couches crockery cupboards cups cushions
cutlery decanters desks doorbells drawers dressers duvets flagons flasks footstools forks freezers graters
griddles hammocks hampers kettles ladles lampshades lamps mantelpieces mattresses microwaves mirrors napkins
ottomans ovens pans parasols peelers percolators pillows placemats plates pots quilts recliners
refrigerators rugs saucepans saucers shelves showers sideboards sinks sofas spatulas spoons stools tables
tablecloths tapestries teapots toasters towels trays trivets vases wardrobes whisks woks bagpipes balalaikas
banjos bassoons bugles castanets celestas cellos chimes clavichords concertinas congas cornets didgeridoos
dulcimers euphoniums fiddles flutes glockenspiels gongs guitars harmoniums harps harpsichords kalimbas
keyboards lutes lyres mandolins marimbas metronomes oboes ocarinas panpipes pianos piccolos recorders
saxophones sousaphones spinets synthesizers tablas theremins timpani triangles trombones tubas ukuleles
vibraphones violins whistles xylophones zithers ballads bluegrass blues calypso cantatas chorales concertos
disco dubstep flamenco fugues funk gospel grunge jazz lullabies madrigals mazurkas musicals nocturnes operas
operettas overtures polkas preludes punk ragtime rap reggae requiems serenades shanties sonatas soul
symphonies techno trios waltzes ballet boleros breakdancing capoeira charleston gavottes hornpipes jigs jive
limbo mambo minuets quadrilles reels rumba salsa samba tarantellas zumba abseiling aerobics archery
athletics badminton ballooning basketball biathlons billiards bobsleighing bouldering boxing bullfighting
canoeing caving climbing croquet curling cycling decathlons discus diving dodgeball equestrianism falconry
fencing fishing frisbee golf gymnastics handball hiking hockey hurdles hurling judo javelins jujitsu karate
kendo kickboxing kitesurfing korfball lacrosse marathons motocross mountaineering netball paddleboarding
paragliding parkour pentathlons polo powerlifting rafting rodeos rowing rugby running sailing skateboarding
skating skiing skydiving snorkeling snowboarding soccer softball sprinting steeplechases sumo surfing
swimming tennis tobogganing trampolining triathlons volleyball wakeboarding walking waterskiing windsurfing
wrestling yoga backgammon blackjack boomerangs canasta charades chess cribbage crosswords cryptograms
dioramas dolls dominoes dollhouses hopscotch hoops jacks juggling kaleidoscopes mahjong marionettes mazes
monopoly patience pinball pinatas poker quizzes rattles riddles roulette scrabble seesaws skittles slides
stilts sudoku tarot tiddlywinks whist yahtzee antiquing astrology baking beekeeping birdwatching blogging
bookbinding calligraphy camping canning carpentry collages composting cosplay couponing decoupage doodling
dowsing drawing engraving etching foraging gardening geocaching glassblowing graffiti hitchhiking hunting
illustration ikebana improvisation journaling knitting landscaping lapidary lithography meditation
metalworking mosaics mime numismatics origami painting patchwork photography picnics poetry pottery puppetry
quilling reading scrapbooking sewing sightseeing singing sketching spelunking stargazing storytelling
taxidermy thrifting trainspotting traveling ventriloquism volunteering welding whittling winemaking
woodcarving writing airplanes airships ambulances bicycles biplanes bulldozers buses canoes caravans
carriages catamarans convertibles coracles coupes cruisers dirigibles dugouts excavators ferries forklifts
funiculars galleons gliders gondolas hatchbacks helicopters hovercrafts hydrofoils jets junks ketches
lifeboats locomotives lorries minibuses minivans mopeds motorcycles motorhomes pickups rickshaws roadsters
rockets satellites scooters sedans segways sidecars skiffs sleighs snowmobiles snowplows spaceships
stagecoaches steamboats steamrollers submarines tankers tractors trains trams triremes trolleybuses trucks
tugboats vans wagons yachts zeppelins amphitheaters apartments aqueducts arboretums archways arenas attics
bakeries balconies basilicas bazaars bistros boathouses bungalows cabins cafes canals cathedrals cellars
chalets chapels churches cinemas citadels cloisters conservatories cottages courthouses courtyards dams
docks domes drawbridges embassies factories farmhouses fortresses fountains gargoyles gazebos greenhouses
gymnasiums harbors hospitals hostels hotels inns jetties kiosks laboratories lighthouses lodges lofts
mansions mausoleums mills minarets monasteries mosques museums nurseries obelisks orangeries orchards
pagodas palaces pavilions pergolas piers planetariums playgrounds pyramids restaurants ruins sawmills
shrines silos skyscrapers spires stadiums stupas supermarkets synagogues tenements terraces theaters towers
tunnels turrets universities verandas villas warehouses watermills wharves windmills zoos archipelagos
atolls auroras badlands bayous beaches blizzards breezes brooks canyons cliffs comets craters creeks
cyclones deltas deserts dew drizzle dunes dusk earthquakes eclipses estuaries fens fields fjords floods
foothills forests frost galaxies glaciers glens gorges grasslands hail heathlands hedgerows hills hurricanes
icebergs icicles islands jungles lagoons lakes lava marshes meadows mesas mists moons moorlands mountains
nebulas oases pampas peninsulas plains planets ponds prairies puddles quicksands rainbows rainforests rapids
ravines savannas sleet snow snowflakes springs stalactites stalagmites starlight storms straits streams
sunrises swamps taigas thunder tides tornadoes tundras typhoons valleys volcanoes whirlpools wind allegories
almanacs anecdotes anthologies aphorisms atlases biographies cartoons catalogs comics cubism dadaism diaries
dictionaries elegies encyclopedias epics epigrams fables fairytales farces fiction frescoes idioms
impressionism legends letters manga magazines melodramas memoirs murals myths newspapers novellas odes
palindromes pamphlets parables pantomimes playwrights proverbs puns sagas satire screenplays sculptures
soliloquies sonnets statues surrealism tattoos tragedies triptychs watercolors westerns abacuses albums
badges banners binoculars blackboards bookmarks buttons calendars cameras canvases cardboard coins confetti
crayons diplomas envelopes erasers fans feathers fireworks flags globes gramophones highlighters incense ink
jukeboxes keys lasers lockets maps masks notebooks parchment pencils pendulums perfumes periscopes
phonographs postcards printers prisms radios scales shells sketchbooks soap souvenirs stamps stickers
sundials suitcases swords telephones televisions thermoses tickets trophies turntables typewriters videos
windchimes wreaths wristwatches xylographs
"""

_FIRST_NAMES = """
Aaron Abigail Adam Adele Agnes Aidan Alan Albert Alejandro Alice Allison Amara Amir Amy Andre Angela Anika
Anna Anton April Ariel Arthur Astrid Ayumi Barbara Beatrice Benjamin Bertha Boris Brenda Bridget Bruno
Camille Carla Carmen Caroline Cedric Celia Charles Chiara Christine Clara Clement Conrad Cora Cyrus Daisy
Daniel Daphne David Deborah Denise Derek Diego Dmitri Donna Doris Dorothy Edgar Edith Edward Edwin Elaine
Eleanor Elias Elise Elsa Emil Emma Enrique Erika Esther Ethan Eva Evelyn Farah Fatima Fernanda Fiona
Florence Frances Freya Frida Gareth Gemma Geoffrey Gerald Gilbert Giulia Gloria Grace Graham Guido Gustav
Hannah Harold Harvey Hassan Hector Helen Henry Hilda Hiroshi Howard Hugo Ibrahim Ida Imani Ingrid Iris Irma
Isabel Jack Jacob Jamila Jane Jasmine Jason Jean Jennifer Jerome Jessica Joel Johanna Jonas Joseph Joyce
Julia Julian Kai Karen Kate Keiko Kelly Kenneth Klara Kofi Laura Lawrence Leila Leonard Leroy Liam Lillian
Lionel Lisa Louis Louise Lucia Luther Mabel Magnus Malik Marco Margaret Marian Marina Marion Mark Martin
Mathilde Maurice Mavis Megan Mei Mercedes Michael Mila Milo Miranda Mona Monica Muriel Nadia Natalie Nathan
Nelson Nicholas Nigel Nina Noel Norman Odette Olga Oliver Omar Oscar Owen Pablo Patricia Patrick Paula Pedro
Percy Peter Philip Pierre Priya Rachel Rafael Ramona Raymond Regina Rene Richard Rita Roberta Rodney Roland
Rosa Rosalind Rufus Rupert Samir Samuel Sara Saul Serena Seth Sheila Sidney Sofia Solomon Stanley Stephen
Stuart Sven Sylvia Tariq Tatiana Teresa Thomas Todd Trevor Valerie Vanessa Victor Vincent Viola Vivian
Vladimir Wanda Warren Wilfred William Xavier Yara Yusuf Yvonne Zara
"""

_LAST_NAMES = """
Abbott Abe Adams Aguilar Albrecht Andersen Archer Arnold Austin Baker Banks Barrett Beck Becker Bennett
Bergman Bishop Bloom Bowman Bradley Brennan Brooks Burke Byrne Campbell Carlson Carroll Carter Chan Chang
Chen Cohen Coleman Conti Cooper Crawford Cunningham Daniels Das Davis Delgado Diaz Donovan Drake Duncan
Eaton Eklund Emerson Eriksson Evans Ferguson Fernandez Fischer Fleming Ford Fowler Franklin Freeman Fuchs
Gallagher Gardner Gibson Goldberg Gomez Goodman Graves Griffith Gupta Haas Hale Hansen Harper Harris
Hartmann Hayes Hernandez Herrera Holland Horvath Hsu Hudson Hunt Ibarra Ito Jackson Jansen Jimenez Johnson
Johnston Kane Kaufman Kemp Khan Kimura Knight Koch Kramer Kumar Lang Lawson Lehmann Leone Lopez Lucas
MacDonald Maier Mann Marsh Martinez Matsuda Mayer McKay Mehta Mendez Miller Mitchell Moore Moreau Morgan
Morrison Murphy Nagy Nash Newman Nichols Nolan Norris Nowak Oconnor Okafor Olson Ortiz Owens Palmer Parker
Patel Payne Perez Perkins Peters Pham Pierce Porter Price Ramirez Rao Reid Reynolds Rice Riley Rivera
Roberts Rocha Romano Rosen Rossi Ruiz Russo Saito Sanchez Santos Schmidt Schroeder Schultz Scott Shah Shaw
Silva Singh Smith Sokolov Spencer Stevens Stone Sullivan Svensson Sweeney Taylor Torres Tucker Underwood
Vargas Vega Vogel Walker Walsh Ward Watson Weber Weiss Werner Wheeler Wilson Wolf Wood Wright Yamada Yates
Young Zhou
"""

LIKED = tuple(_LIKED.split())
"""Things to like, as many as LIMIT has."""

FIRST_NAMES, LAST_NAMES = tuple(_FIRST_NAMES.split()), tuple(_LAST_NAMES.split())
"""Names, of which there are as many pairs as LIMIT has documents."""

LEAST_LIKED = 45
"""Things that a document names, or more if more queries ask for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitData:
    """Texts, and which of them answer which query."""

    documents: list[str]
    """The documents that answer queries, then distractors."""
    queries: list[str]
    answers_Q2: npt.NDArray[np.int64]
    """Positions of the two answers of each query."""
    num_answering: int
    """Documents that answer queries: the first ones. They alone are the small data set."""


def make_limit_data(*, queries: int = 1_000, documents: int = 10_000, seed: int = 42) -> LimitData:
    """Make the data set; the same arguments make the same one.

    Args:
        queries: number of queries. As many pairs are taken of the fewest documents that have them: of 46
            documents for 1,000.
        documents: number of documents, distractors included. Published are 50,000.
        seed: of everything random.

    Raises:
        InvalidInputError: there are too few documents for the queries, or too few words or names.
    """
    num_answering = _fewest_documents(queries)
    _check(queries, documents, num_answering)
    random = np.random.default_rng(seed)
    liked = [LIKED[place] for place in random.permutation(len(LIKED))]
    asked, others = liked[:queries], liked[queries:]
    pairs = list(itertools.islice(itertools.combinations(range(num_answering), 2), queries))
    likes: list[list[str]] = [[] for _ in range(documents)]
    for thing, pair in zip(asked, pairs, strict=True):
        for document in pair:
            likes[document].append(thing)
    for things in likes:
        missing = max(0, LEAST_LIKED - len(things))
        things += [others[place] for place in random.choice(len(others), missing, replace=False)]
    names = _names(documents, random)
    return LimitData(
        documents=[_document(name, things, random) for name, things in zip(names, likes, strict=True)],
        queries=[f"Who likes {thing}?" for thing in asked],
        answers_Q2=np.array(pairs, dtype=np.int64),
        num_answering=num_answering,
    )


def _fewest_documents(pairs: int) -> int:
    """The fewest documents that have as many pairs."""
    return next(count for count in itertools.count(2) if math.comb(count, 2) >= pairs)


def _check(queries: int, documents: int, num_answering: int) -> None:
    most_queries, most_documents = len(LIKED) - LEAST_LIKED, len(FIRST_NAMES) * len(LAST_NAMES)
    if not 1 <= queries <= most_queries:
        raise InvalidInputError(f"Got {queries} queries; expected 1 to {most_queries:,}.")
    if not num_answering <= documents <= most_documents:
        raise InvalidInputError(
            f"Got {documents} documents for {queries} queries; expected {num_answering}, which have as many "
            f"pairs, to {most_documents:,}."
        )


def _names(count: int, random: np.random.Generator) -> list[str]:
    places = random.choice(len(FIRST_NAMES) * len(LAST_NAMES), count, replace=False)
    return [
        f"{FIRST_NAMES[place // len(LAST_NAMES)]} {LAST_NAMES[place % len(LAST_NAMES)]}" for place in places
    ]


def _document(name: str, things: Sequence[str], random: np.random.Generator) -> str:
    *first, last = (things[place] for place in random.permutation(len(things)))
    return f"{name} likes {', '.join(first)} and {last}."
