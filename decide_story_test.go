package attune

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// stories are conversations with a memcached: a command, with its data block
// after "=", and the reply, with a value in quotes. "wait" lets seconds pass.
// One marked "new" uses what memcached has learnt since 1.6.18.
const stories = `
## storage
replace k 0 0 1 = a            -> NOT_STORED
append k 0 0 1 = a             -> NOT_STORED
cas k 0 0 1 5 = a              -> NOT_FOUND
add k 7 0 1 = a                -> STORED
add k 8 0 1 = b                -> NOT_STORED
get k                          -> VALUE k 7 1 "a"
append k 8 99 2 = yz           -> STORED
prepend k 8 99 1 = _           -> STORED
get k                          -> VALUE k 7 4 "_ayz"
replace k 9 0 0 = ""           -> STORED
get k                          -> VALUE k 9 0 ""
cas k 0 0 1 0 = a              -> EXISTS
delete k                       -> DELETED
delete k                       -> NOT_FOUND
get k                          -> END

## exptime
set k 0 -1 1 = a               -> STORED
get k                          -> END
set k 0 2592001 1 = a          -> STORED
get k                          -> END
add k 0 100 1 = a              -> STORED
mg k t                         -> HD t100
touch k 200                    -> TOUCHED
gat 300 k                      -> VALUE k 0 1 "a"
mg k t                         -> HD t300
gat -1 k                       -> VALUE k 0 1 "a"
touch k 5                      -> NOT_FOUND
gat 5 k                        -> END

## an item dies when its time has come
set k 0 30 1 = a               -> STORED
wait 29
mg k t v                       -> VA 1 t1 "a"
wait 1
incr k 1                       -> NOT_FOUND
mg k t v                       -> EN
add k 0 0 1 = b                -> STORED

## counters
incr n 1                       -> NOT_FOUND
set n 5 60 2 = 10              -> STORED
incr n 90                      -> 100
mg n v f t                     -> VA 3 f5 t60 "100"
decr n 91                      -> 9
get n                          -> VALUE n 5 3 "9  "
incr n 1                       -> 10
get n                          -> VALUE n 5 3 "10 "
decr n 11                      -> 0
incr n 18446744073709551615    -> 18446744073709551615
incr n 3                       -> 2
get n                          -> VALUE n 5 20 "2                   "

## what counts as a number
set n 0 0 4 = "+5 x"           -> STORED
incr n 1                       -> 6
get n                          -> VALUE n 0 4 "6   "
set n 0 0 3 = "1\x002"         -> STORED
incr n 1                       -> 2
set n 0 0 30 = 000000000000000000000000000007 -> STORED
incr n 1                       -> 8
set n 0 0 2 = "-0"             -> STORED
incr n 1                       -> 1
set n 0 0 21 = -18446744073709551615 -> STORED
incr n 1                       -> 2
set n 0 0 3 = " -3"            -> STORED
incr n 1                       -> CLIENT_ERROR cannot increment or decrement non-numeric value
set n 0 0 20 = 18446744073709551616 -> STORED
incr n 1                       -> CLIENT_ERROR cannot increment or decrement non-numeric value
set n 0 0 0 = ""               -> STORED
incr n 1                       -> CLIENT_ERROR cannot increment or decrement non-numeric value
ma n C77                       -> CLIENT_ERROR cannot increment or decrement non-numeric value
set n 0 0 1 = x                -> STORED
decr n 1                       -> CLIENT_ERROR cannot increment or decrement non-numeric value
ma n C77                       -> EX

## ma
ma n                           -> NF
ma n N100 J12 t v              -> VA 2 t100 "12"
ma n N50 J13 D8 v              -> VA 2 "20"
ma n MD v t                    -> VA 2 t100 "19"
ma n T5 t                      -> HD t5
mg n v s f                     -> VA 2 s2 f0 "20"
ma n C99                       -> EX
ma n C0 v                      -> VA 2 "21"

## the unique a client chooses (new)
ms k 1 T60 E10 = a             -> HD
ma n N9 J7 E900 c              -> HD c900
ma n C900 E3 v c               -> VA 1 c3 "8"
ms k 1 C9 E11 c = b            -> EX c0
ms k 1 C10 E11 c = b           -> HD c11
gat 50 k                       -> VALUE k 0 1 "b"
mg k T40 E12 c t               -> HD c11 t40
touch k 30                     -> TOUCHED
mg k c t                       -> HD c11 t30
md k C10                       -> EX
md k C0                        -> EX
md k C11 E99                   -> HD
mg x N20 E7 c                  -> HD c7 W
ms k 1 ME C5 E5 = a            -> HD
ms k 1 ME C5 = a               -> NS
ms k 1 C5 MR E6 c = c          -> HD c6
ms k 1 MA C5 = d               -> EX
ms k 1 MA C0 E8 s c = d        -> HD s2 c8
mg k v C8                      -> HD
mg k v C7                      -> VA 2 "cd"

## replace with a unique is cas
ms k 1 MR = a                  -> NS
ms k 1 MR C5 = a               -> NF
ms k 1 C5 = a                  -> NF
ms k 1 C0 = a                  -> NF

## append creates (new)
ms k 1 MA N30 T99 F4 = b       -> HD
mg k v t f                     -> VA 1 t30 f4 "b"
ms k 1 MP N60 T99 F5 s = a     -> HD s2
mg k v t f                     -> VA 2 t30 f4 "ab"

## the first reader of a stale item wins
set k 5 100 1 = a              -> STORED
mg k v                         -> VA 1 "a"
md k I                         -> HD
get k                          -> VALUE k 5 1 "a"
gat 90 k                       -> VALUE k 5 1 "a"
mg k v                         -> VA 1 X W "a"
mg k                           -> HD Z X
touch k 50                     -> TOUCHED
mg k v t f                     -> VA 1 t50 f5 Z X "a"
md k I T20                     -> HD
mg k t                         -> HD t20 X W
set k 0 0 1 = b                -> STORED
mg k v                         -> VA 1 "b"
md k I                         -> HD
append k 0 0 1 = c             -> STORED
mg k v                         -> VA 2 "bc"

## a counter stays stale until it outgrows its value
set n 0 0 2 = 10               -> STORED
md n I                         -> HD
mg n                           -> HD X W
decr n 1                       -> 9
mg n v                         -> VA 2 Z X "9 "
incr n 91                      -> 100
mg n v                         -> VA 3 "100"

## a late cas of an invalidated item stores and stays stale (new)
ms k 1 T60 E10 = a             -> HD
md k I E12                     -> HD
ms k 1 C11 T99 E13 = b         -> EX
ms k 1 C11 I T99 E13 c = b     -> HD c13
mg k v t c                     -> VA 1 t60 c13 X W "b"
ms k 1 C12 I T99 E14 = c       -> HD
mg k v t c                     -> VA 1 t60 c14 Z X "c"
ms k 1 C15 I E16 = d           -> EX
ms k 1 C0 I = d                -> EX
ms k 1 MR C13 I E16 = d        -> HD
mg k v t c                     -> VA 1 t60 c16 Z X "d"
ms k 1 C16 I T30 E17 = e       -> HD
mg k v t c                     -> VA 1 t30 c17 "e"

## md x keeps the item (new)
ms k 3 F5 T60 E10 = abc        -> HD
md k x                         -> HD
mg k v t f c s                 -> VA 0 t-1 f0 c10 s0 ""
ms k 3 F5 T60 = abc            -> HD
md k x T30 F8 E44              -> HD
mg k v t f c                   -> VA 0 t30 f8 c44 ""
ms k 3 F5 T60 = abc            -> HD
md k x I T30 E45               -> HD
mg k v t f c                   -> VA 0 t30 f0 c45 X W ""
mg k v t f c                   -> VA 0 t30 f0 c45 Z X ""
ms k 3 T60 = abc               -> HD
md k T30                       -> HD
mg k                           -> EN

## vivify
mg k                           -> EN
mg k N30 v                     -> VA 0 W ""
mg k N60 v t h                 -> VA 0 t30 h1 Z ""
mg k v                         -> VA 0 Z ""
get k                          -> VALUE k 0 0 ""
ms k 1 = a                     -> HD
mg k N60 v                     -> VA 1 "a"

## recache
ms k 1 = a                     -> HD
mg k R30                       -> HD
ms k 1 T60 = a                 -> HD
mg k R60                       -> HD
mg k R0                        -> HD
mg k R-1                       -> HD
mg k R61 t                     -> HD t60 W
mg k R61                       -> HD Z
mg k                           -> HD Z
ms k 1 T20 = a                 -> HD
mg k R30 T100 t                -> HD t100 W
ms k 1 T20 = a                 -> HD
md k I                         -> HD
mg k R10                       -> HD X W

## recache when time passes
ms k 1 T60 = a                 -> HD
wait 30
mg k R30 t                     -> HD t30
wait 1
mg k R30 t                     -> HD t29 W
mg k R30 t                     -> HD t29 Z

## read before and last access
ms k 1 = a                     -> HD
mg k h l                       -> HD h0 l0
wait 5
mg k h l                       -> HD h1 l5
mg j N5 h l                    -> HD h0 l0 W
`

type story struct {
	name  string
	lines [][2]string // command and reply
}

func tellStories(t *testing.T) (all []story) {
	for _, text := range strings.Split(stories, "\n## ")[1:] {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		s := story{name: lines[0]}
		for _, line := range lines[1:] {
			command, reply, _ := strings.Cut(line, "->")
			s.lines = append(s.lines, [2]string{strings.TrimSpace(command), strings.TrimSpace(reply)})
		}
		if len(s.lines) == 0 {
			t.Fatalf("story %q has no lines", s.name)
		}
		all = append(all, s)
	}
	return all
}

// TestDecideTellsTheStories: Decide answers as the stories say.
func TestDecideTellsTheStories(t *testing.T) {
	for _, s := range tellStories(t) {
		t.Run(s.name, func(t *testing.T) {
			d := &decider{now: 1_790_000_000_000, shelf: shelf{items: map[string]Item{}, last: 1000}}
			for _, line := range s.lines {
				if got := d.tell(t, line[0]); got != line[1] {
					t.Fatalf("%s\n got %s\nwant %s", line[0], got, line[1])
				}
			}
		})
	}
}

// TestMemcachedTellsTheStories: so does memcached, if one is installed. What its
// release is too old for is left out, and so is what takes time.
func TestMemcachedTellsTheStories(t *testing.T) {
	m := startMemcached(t)
	old := strings.HasPrefix(m.tell(t, "ms probe 1 E1 = a"), "CLIENT_ERROR")
	told := 0
	for _, s := range tellStories(t) {
		waits := false
		for _, line := range s.lines {
			waits = waits || strings.HasPrefix(line[0], "wait")
		}
		if waits || old && strings.HasSuffix(s.name, "(new)") {
			continue
		}
		told++
		t.Run(s.name, func(t *testing.T) {
			// Its clock may tick in the middle of a story, but not of three.
			wrong := ""
			for try := 0; try == 0 || wrong != "" && try < 3; try++ {
				wrong = ""
				for _, key := range []string{"k", "n", "x"} {
					m.tell(t, "md "+key)
				}
				for _, line := range s.lines {
					if got := m.tell(t, line[0]); got != line[1] {
						wrong += fmt.Sprintf("%s\n memcached %s\n the story %s\n", line[0], got, line[1])
					}
				}
			}
			if wrong != "" {
				t.Error(wrong)
			}
		})
	}
	if told < 9 {
		t.Errorf("only %d stories were told", told)
	}
}

// command is a line of a story: its words, and the data block if it has one.
type command struct {
	words []string
	block string
	data  bool
}

func readCommand(t *testing.T, line string) (c command) {
	head, block, data := strings.Cut(line, " =")
	block = strings.TrimSpace(block)
	if strings.HasPrefix(block, `"`) {
		unquoted, err := strconv.Unquote(block)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		block = unquoted
	}
	return command{strings.Fields(head), block, data}
}

// memcached is a real one that runs for the test.
type memcached struct {
	conn net.Conn
	in   *bufio.Reader
}

func startMemcached(t *testing.T) *memcached {
	conn := attunetest.StartMemcached(t, "-m", "8", "-t", "1").Dial()
	return &memcached{conn, bufio.NewReader(conn)}
}

func (m *memcached) tell(t *testing.T, line string) string {
	c := readCommand(t, line)
	out := strings.Join(c.words, " ") + "\r\n"
	if c.data {
		out += c.block + "\r\n"
	}
	_ = m.conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(m.conn, out); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		s, err := m.in.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return strings.TrimSuffix(s, "\r\n")
	}
	reply := read()
	words := strings.Fields(reply)
	switch words[0] {
	case "VA":
		return reply + " " + strconv.Quote(read())
	case "VALUE":
		reply += " " + strconv.Quote(read())
		read() // END
	}
	return reply
}

// decider answers like a memcached by Decide alone.
type decider struct {
	now int64
	shelf
}

func (d *decider) tell(t *testing.T, line string) string {
	c := readCommand(t, line)
	if c.words[0] == "wait" {
		n, _ := strconv.Atoi(c.words[1])
		d.now += int64(n) * 1000
		return ""
	}
	op, flags := toOp(t, line, c)
	key := string(op.Key.Text)
	cur := d.cur(key)
	change, res := op.Decide(&cur, d.now, nil)
	if !change.None() {
		d.last++
		change.Stamp(d.last)
		if err := d.apply(&change); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		res.Stamped(&change)
	}
	if it, ok := d.items[key]; ok { // what a replica notes of use
		it.Fetched = op.Verb == Get || it.Fetched && change.Item.Stored != change.Item.Version
		it.Accessed = d.now / 1000
		d.items[key] = it
	}
	if strings.HasPrefix(c.words[0], "m") {
		return d.meta(c.words[0], flags, op, &res)
	}
	switch res.Status {
	case Hit:
		it := res.Item
		return fmt.Sprintf("VALUE %s %d %d %q", key, it.Flags, it.Size, it.Value)
	case Counted:
		return strconv.FormatUint(res.Number, 10)
	}
	return map[Status]string{
		Miss: "END", Stored: "STORED", NotStored: "NOT_STORED", Exists: "EXISTS", NotFound: "NOT_FOUND",
		Deleted: "DELETED", Touched: "TOUCHED", NonNumeric: nonNumeric,
	}[res.Status]
}

const nonNumeric = "CLIENT_ERROR cannot increment or decrement non-numeric value"

// meta is the reply to a meta command, for as much as the stories use.
func (d *decider) meta(name string, flags []string, op *Op, res *Result) string {
	if res.Status == NonNumeric {
		return nonNumeric
	}
	it := &res.Item
	done := res.Status == Hit || res.Status == Stored || res.Status == Deleted || res.Status == Counted
	reply := map[Status]string{
		Hit: "HD", Stored: "HD", Deleted: "HD", Counted: "HD",
		Miss: "EN", NotStored: "NS", Exists: "EX", NotFound: "NF",
	}[res.Status]
	value := ""
	if number := strconv.FormatUint(res.Number, 10); name == "ma" && done && op.Mode.Has(WantValue) {
		reply, value = fmt.Sprintf("VA %d", len(number)), fmt.Sprintf(" %q", number)
	} else if it.Value != nil {
		reply, value = fmt.Sprintf("VA %d", len(it.Value)), fmt.Sprintf(" %q", it.Value)
	}
	expires := res.Before
	for _, f := range flags {
		switch f[0] {
		case 'T', 'N': // the stories write t after it
			expires = it.Expires
		}
	}
	for _, f := range flags {
		switch {
		case f == "c" && (done || name == "ms"):
			reply += fmt.Sprintf(" c%d", it.CAS)
		case !done:
		case f == "f":
			reply += fmt.Sprintf(" f%d", it.Flags)
		case f == "s":
			reply += fmt.Sprintf(" s%d", it.Size)
		case f == "t" && expires == 0:
			reply += " t-1"
		case f == "t":
			reply += fmt.Sprintf(" t%d", (expires-d.now+999)/1000)
		case f == "h":
			reply += map[bool]string{true: " h1", false: " h0"}[it.Fetched]
		case f == "l":
			reply += fmt.Sprintf(" l%d", d.now/1000-it.Accessed)
		}
	}
	for _, sent := range []struct {
		yes  bool
		flag string
	}{{res.Taken, " Z"}, {res.Stale, " X"}, {res.Won, " W"}} {
		if sent.yes {
			reply += sent.flag
		}
	}
	return reply + value
}

// toOp reads a command of the stories, and returns a meta command's flags.
func toOp(t *testing.T, line string, c command) (op *Op, flags []string) {
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	unsigned := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	w := c.words
	op = &Op{Key: Key{Text: []byte(w[1])}, Value: []byte(c.block)}
	switch w[0] {
	case "get":
		op.Mode = WantValue
	case "gat":
		op.Key.Text, op.Mode, op.Exptime = []byte(w[2]), WantValue|Retime, number(w[1])
	case "touch":
		op.Verb, op.Exptime = Touch, number(w[2])
	case "delete":
		op.Verb = Delete
	case "incr", "decr":
		op.Verb, op.Delta = map[string]Verb{"incr": Incr, "decr": Decr}[w[0]], unsigned(w[2])
	case "set", "add", "replace", "append", "prepend", "cas":
		op.Verb = map[string]Verb{
			"set": Set, "add": Add, "replace": Replace, "append": Append, "prepend": Prepend, "cas": Set,
		}[w[0]]
		op.Flags, op.Exptime = uint32(unsigned(w[2])), number(w[3])
		if w[0] == "cas" {
			op.Mode, op.Compare = IfCAS, unsigned(w[5])
		}
	case "mg":
		op.Mode, flags = Lease, w[2:]
	case "ms":
		op.Verb, flags = Set, w[3:]
	case "md":
		op.Verb, flags = Delete, w[2:]
	case "ma":
		op.Verb, op.Delta, flags = Incr, 1, w[2:]
	default:
		t.Fatalf("%s: no such command", line)
	}
	for _, f := range flags {
		token := f[1:]
		switch f[0] {
		case 'v':
			op.Mode |= WantValue
		case 'I':
			op.Mode |= Invalidate
		case 'x':
			op.Mode |= Clear
		case 'T':
			op.Exptime = number(token)
			op.Mode |= Retime
		case 'N':
			op.Mode |= Vivify
			op.VivifyTTL = number(token)
		case 'R':
			op.Mode |= Recache
			op.RecacheTTL = number(token)
		case 'C':
			op.Compare = unsigned(token)
			op.Mode |= map[string]Mode{"mg": IfMatch, "ms": IfCAS, "md": IfCAS, "ma": IfCAS}[w[0]]
		case 'E':
			op.CAS = unsigned(token)
			op.Mode |= ChooseCAS
		case 'F':
			op.Flags = uint32(unsigned(token))
		case 'D':
			op.Delta = unsigned(token)
		case 'J':
			op.Initial = unsigned(token)
		case 'M':
			op.Verb = map[string]Verb{
				"msE": Add, "msA": Append, "msP": Prepend, "msR": Replace, "msS": Set, "maI": Incr, "maD": Decr,
			}[w[0]+token]
		}
	}
	return op, flags
}
