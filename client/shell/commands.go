package shell

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/bradfitz/gomemcache/memcache"
)

// command is a row of the table that running, help and completion go by.
type command struct {
	name, alias string
	args        string   // as help shows them
	min, max    int      // how many of them; max < 0 is any number
	options     []string // those it takes, of --ttl, --flags, --raw and --json
	sections    []string // completions of its first argument
	short       string   // one line for the list
	long        string   // more, for `help NAME`; may be empty
	run         func(sh *shell, in input) error
	meta        bool // the line goes to the server as typed
	local       bool // it is no command of memcache
}

// input is what a command runs on.
type input struct {
	verb  string
	args  []word
	ttl   int32
	flags uint32
	raw   bool
	json  bool
	// The rest is for meta commands.
	line  string // as typed, up to " -- "
	block *word  // what follows it, if there is any
}

// commands is a function, not a variable, because help is in the table it prints.
func commands() []command {
	stores := []string{"--ttl", "--flags"}
	raw := []string{"--raw"}
	asJSON := []string{"--json"}
	return []command{
		{name: "get", args: "KEY...", min: 1, max: -1, options: raw, run: (*shell).get,
			short: "show the values of keys"},
		{name: "gets", args: "KEY...", min: 1, max: -1, options: raw, run: (*shell).get,
			short: "show values with flags, size and cas unique",
			long:  "The line above each value reads: VALUE key flags bytes unique."},
		{name: "gat", args: "TTL KEY...", min: 2, max: -1, options: raw, run: (*shell).getAndTouch,
			short: "show values and give them a new time to live"},
		{name: "set", args: "KEY VALUE [--ttl N] [--flags N]", min: 2, max: 2, options: stores, run: (*shell).store,
			short: "store a value"},
		{name: "add", args: "KEY VALUE [--ttl N] [--flags N]", min: 2, max: 2, options: stores, run: (*shell).store,
			short: "store a value if the key has none"},
		{name: "replace", args: "KEY VALUE [--ttl N] [--flags N]", min: 2, max: 2, options: stores, run: (*shell).store,
			short: "store a value if the key has one"},
		{name: "append", args: "KEY VALUE", min: 2, max: 2, run: (*shell).store,
			short: "add to the end of a value; its ttl and flags stay"},
		{name: "prepend", args: "KEY VALUE", min: 2, max: 2, run: (*shell).store,
			short: "add to the front of a value; its ttl and flags stay"},
		{name: "cas", args: "KEY UNIQUE VALUE [--ttl N] [--flags N]", min: 3, max: 3, options: stores, run: (*shell).compareAndSwap,
			short: "store a value if nobody has since gets showed UNIQUE"},
		{name: "incr", args: "KEY [DELTA]", min: 1, max: 2, run: (*shell).count,
			short: "add DELTA, or 1, to a decimal number"},
		{name: "decr", args: "KEY [DELTA]", min: 1, max: 2, run: (*shell).count,
			short: "subtract DELTA, or 1; stops at 0"},
		{name: "touch", args: "KEY TTL", min: 2, max: 2, run: (*shell).touch,
			short: "give a key a new time to live"},
		{name: "delete", alias: "del", args: "KEY", min: 1, max: 1, run: (*shell).delete,
			short: "delete a key"},
		{name: "flush", args: "[DELAY]", min: 0, max: 1, run: (*shell).flush,
			short: "delete everything, now or in DELAY seconds",
			long:  "It is flush_all on the wire: every item stored until then is gone, on all controllers."},
		{name: "stats", args: "[SECTION...]", min: 0, max: -1, run: (*shell).stats,
			sections: []string{"conns", "items", "reset", "settings", "sizes", "slabs"},
			short:    "show the server's statistics"},
		{name: "version", run: (*shell).version, short: "show the server's version"},
		{name: "mg", args: "KEY [FLAG...]", meta: true, run: (*shell).meta, options: raw, short: "meta get: read an item; flags say what of it to show", long: metaHelp},
		{name: "ms", args: "KEY [LENGTH] [FLAG...] -- VALUE", meta: true, run: (*shell).meta, options: raw, short: "meta set: store an item",
			long: metaHelp + `

The value stands on the same line, after " -- ":

  ms greeting T60 c -- "hello, world"
  ms picture -- @picture.png

The shell puts its LENGTH in. One that is given must be right.`},
		{name: "md", args: "KEY [FLAG...]", meta: true, run: (*shell).meta, options: raw, short: "meta delete: delete or invalidate an item", long: metaHelp},
		{name: "ma", args: "KEY [FLAG...]", meta: true, run: (*shell).meta, options: raw, short: "meta arithmetic: count up or down", long: metaHelp},
		{name: "mn", meta: true, run: (*shell).meta, options: raw, short: "meta no-op: answer MN", long: metaHelp},
		{name: "me", args: "KEY [FLAG...]", meta: true, run: (*shell).meta, options: raw, short: "meta debug: show what the server keeps of a key", long: metaHelp},
		{name: "explain", args: "KEY [--json]", min: 1, max: 1, options: asJSON, local: true, run: (*shell).explain,
			short: "say why a get would hit or miss, and what each controller has",
			long: `Asks all controllers, through the one that is talked to and its admin address.
A get that would not hit counts as "no" for the exit code.`},
		{name: "watch", args: "[PREFIX] [--json]", min: 0, max: 1, options: asJSON, local: true, run: (*shell).watch,
			short: "show changes of keys that begin with PREFIX, as they come",
			long: `It shows what takes effect on the controller that is talked to, whoever decided it,
until Ctrl-C: set (whatever made new bytes), touch (whatever did not), delete, evict,
expire (when the item is cleared away) and flush. Who reads too slowly loses events,
and is told how many.`},
		{name: "trace", args: "COMMAND... [--json]", min: 1, max: -1, options: asJSON, local: true, run: (*shell).trace,
			short: "run a command, and show when it came where",
			long: `The command is carried out. US are microseconds since the controller received it,
TOOK those of each step.`},
		{name: "show", args: "[--watch[=TIME]] [--json]", max: -1, local: true, run: (*shell).operate,
			short: "show the cluster: who is there, who leads, how far each is behind"},
		{name: "join", args: "[GOSSIP-ADDRESS...]", max: -1, local: true, run: (*shell).operate,
			short: "have this controller find others now; or how to start a further one"},
		{name: "leave", args: "NAME [--timeout TIME]", min: 1, max: -1, local: true, run: (*shell).operate,
			short: "have the controller of that name leave for good, and stop (quit leaves the shell)"},
		{name: "leader", args: "[transfer [--to NAME]]", max: -1, sections: []string{"transfer"}, local: true, run: (*shell).operate,
			short: "say who leads, or have another controller lead"},
		{name: "snapshot", args: "save|restore|inspect FILE", max: -1, sections: []string{"inspect", "restore", "save"}, local: true, run: (*shell).operate,
			short: "save all items to a file here, restore them"},
		{name: "fault", args: "list|clear|...", max: -1, sections: []string{"clear", "clock", "delay", "drop", "list", "partition", "pause"}, local: true, run: (*shell).operate,
			short: "break the network of this controller, to see what happens"},
		{name: "help", alias: "?", args: "[COMMAND]", min: 0, max: 1, local: true, run: (*shell).help,
			short: "show this, or how one command is used"},
		{name: "quit", alias: "exit", local: true, run: func(*shell, input) error { return errQuit }, short: "end this shell (so does Ctrl-D)"},
	}
}

const metaHelp = `The line goes to the server as it stands, without quotes or escapes being
undone, and the reply is shown as it comes. A reply that is silenced by the flag
q is no reply. EN, NF, NS and EX count as "no" for the exit code.`

func lookup(name string) (command, bool) {
	all := commands()
	i := slices.IndexFunc(all, func(c command) bool { return name != "" && (c.name == name || c.alias == name) })
	if i < 0 {
		return command{}, false
	}
	return all[i], true
}

func (sh *shell) get(in input) error {
	keys, err := keysOf(in.args)
	if err != nil {
		return err
	}
	items, err := sh.client.GetMulti(keys)
	if err != nil {
		return err
	}
	return sh.showItems(keys, items, in)
}

func (sh *shell) getAndTouch(in input) error {
	ttl, err := ttlOf(in.args[0].text)
	if err != nil {
		return err
	}
	keys, err := keysOf(in.args[1:])
	if err != nil {
		return err
	}
	items := map[string]*memcache.Item{}
	for _, key := range keys {
		item, err := sh.client.GetAndTouch(key, ttl)
		if err == nil {
			items[key] = item
		} else if !errors.Is(err, memcache.ErrCacheMiss) {
			return err
		}
	}
	return sh.showItems(keys, items, in)
}

// showItems prints what was found, under a line that tells whose it is unless
// that is plain. What was not found makes the command a "no".
func (sh *shell) showItems(keys []string, items map[string]*memcache.Item, in input) error {
	var missing []string
	for _, key := range keys {
		item := items[key]
		switch {
		case item == nil:
			missing = append(missing, key)
			continue
		case in.raw:
		case in.verb == "gets":
			sh.header("VALUE %s %d %d %d", key, item.Flags, len(item.Value), item.CasID)
		case len(keys) > 1:
			sh.header("VALUE %s %d %d", key, item.Flags, len(item.Value))
		}
		sh.show(item.Value, in.raw)
	}
	if missing != nil {
		return no("NOT_FOUND " + strings.Join(missing, " "))
	}
	return nil
}

func (sh *shell) store(in input) error {
	return sh.storeItem(in, in.args[1], 0)
}

func (sh *shell) compareAndSwap(in input) error {
	unique, err := strconv.ParseUint(in.args[1].text, 10, 64)
	if err != nil {
		return usageError("UNIQUE is the last number of a gets line, not " + strconv.Quote(in.args[1].text))
	}
	return sh.storeItem(in, in.args[2], unique)
}

func (sh *shell) storeItem(in input, w word, unique uint64) error {
	keys, err := keysOf(in.args[:1])
	if err != nil {
		return err
	}
	value, err := sh.value(w)
	if err != nil {
		return err
	}
	item := &memcache.Item{Key: keys[0], Value: value, Flags: in.flags, Expiration: in.ttl, CasID: unique}
	switch in.verb {
	case "set":
		err = sh.client.Set(item)
	case "add":
		err = sh.client.Add(item)
	case "replace":
		err = sh.client.Replace(item)
	case "append":
		err = sh.client.Append(item)
	case "prepend":
		err = sh.client.Prepend(item)
	case "cas":
		err = sh.client.CompareAndSwap(item)
	}
	return sh.say("STORED", err)
}

func (sh *shell) count(in input) error {
	keys, err := keysOf(in.args[:1])
	if err != nil {
		return err
	}
	delta := uint64(1)
	if len(in.args) > 1 {
		if delta, err = strconv.ParseUint(in.args[1].text, 10, 64); err != nil {
			return usageError("DELTA is a number from 0 to 18446744073709551615, not " + strconv.Quote(in.args[1].text))
		}
	}
	count := sh.client.Increment
	if in.verb == "decr" {
		count = sh.client.Decrement
	}
	n, err := count(keys[0], delta)
	return sh.say(strconv.FormatUint(n, 10), err)
}

func (sh *shell) touch(in input) error {
	keys, err := keysOf(in.args[:1])
	if err != nil {
		return err
	}
	ttl, err := ttlOf(in.args[1].text)
	if err != nil {
		return err
	}
	return sh.say("TOUCHED", sh.client.Touch(keys[0], ttl))
}

func (sh *shell) delete(in input) error {
	keys, err := keysOf(in.args)
	if err != nil {
		return err
	}
	return sh.say("DELETED", sh.client.Delete(keys[0]))
}

func (sh *shell) flush(in input) error {
	if len(in.args) == 1 {
		if _, err := ttlOf(in.args[0].text); err != nil {
			return err
		}
	}
	return sh.lines("flush_all", in.args, func(line string) bool {
		fmt.Fprintln(sh.out, line)
		return false
	})
}

func (sh *shell) stats(in input) error {
	return sh.lines("stats", in.args, func(line string) bool {
		stat, ok := strings.CutPrefix(line, "STAT ")
		if !ok {
			if line != "END" {
				fmt.Fprintln(sh.out, line) // RESET and OK; ITEM lines
			}
			return strings.HasPrefix(line, "ITEM ")
		}
		name, value, _ := strings.Cut(stat, " ")
		fmt.Fprintf(sh.out, "%-28s %s\n", name, value)
		return true
	})
}

func (sh *shell) version(input) error {
	return sh.lines("version", nil, func(line string) bool {
		fmt.Fprintln(sh.out, strings.TrimPrefix(line, "VERSION "))
		return false
	})
}

// lines sends a command that gomemcache does not have, or not whole.
func (sh *shell) lines(verb string, args []word, each func(line string) (more bool)) error {
	for _, a := range args {
		if !printable([]byte(a.text)) || strings.ContainsAny(a.text, " \t\n") || a.text == "" {
			return usageError(fmt.Sprintf("%q cannot be an argument of %s", a.text, verb))
		}
		verb += " " + a.text
	}
	return sh.client.Raw(sh.ctx, []byte(verb+"\r\n"), func(line, _ []byte) bool { return each(string(line)) })
}

// meta sends a line as it is. An "mn" after it marks where the reply ends, as
// the flag q may have silenced it.
func (sh *shell) meta(in input) error {
	line, value, err := sh.metaRequest(in)
	if err != nil {
		return err
	}
	request := append([]byte(line), "\r\n"...)
	if value != nil {
		request = append(append(request, value...), "\r\n"...)
	}
	if in.verb != "mn" {
		request = append(request, "mn\r\n"...)
	}
	var answer error
	err = sh.client.Raw(sh.ctx, request, func(line, block []byte) bool {
		end := string(line) == "MN"
		if end && in.verb != "mn" {
			return false
		}
		status, _, _ := bytes.Cut(line, []byte(" "))
		switch string(status) {
		case "EN", "NF", "NS", "EX":
			answer = no("")
		}
		switch {
		case in.raw && block != nil:
			fmt.Fprintf(sh.out, "%s\r\n%s\r\n", line, block)
		case in.raw:
			fmt.Fprintf(sh.out, "%s\r\n", line)
		default:
			fmt.Fprintf(sh.out, "%s\n", line)
			if block != nil {
				sh.show(block, false)
			}
		}
		return !end
	})
	if err != nil {
		return err
	}
	return answer
}

// metaRequest returns the line to send and the data block of ms.
func (sh *shell) metaRequest(in input) (line string, value []byte, err error) {
	if strings.ContainsAny(in.line, "\r\n") {
		return "", nil, usageError("a request is one line")
	}
	if (in.verb == "ms") != (in.block != nil) {
		if in.verb == "ms" {
			return "", nil, usageError("ms wants its value after \" -- \"")
		}
		return "", nil, usageError("only ms has a value")
	}
	if in.block == nil {
		return in.line, nil, nil
	}
	if value, err = sh.value(*in.block); err != nil {
		return "", nil, err
	}
	fields := strings.Fields(in.line)
	if len(fields) < 2 {
		return "", nil, usageError("ms wants a key")
	}
	size := strconv.Itoa(len(value))
	if len(fields) > 2 && strings.Trim(fields[2], "0123456789") == "" { // no flag begins with a digit
		if fields[2] != size {
			return "", nil, usageError(fmt.Sprintf("the value has %s bytes, not %s", size, fields[2]))
		}
		return in.line, value, nil
	}
	return strings.Join(slices.Insert(fields, 2, size), " "), value, nil
}

// value is what a word stands for: itself, a file, or standard input.
func (sh *shell) value(w word) ([]byte, error) {
	switch {
	case w.quoted:
	case w.text == "-":
		if sh.stdin == nil {
			return nil, usageError(`- is standard input, which only a command given to attune cli has for itself; '-' is a value`)
		}
		return io.ReadAll(sh.stdin)
	case strings.HasPrefix(w.text, "@@"):
		return []byte(w.text[1:]), nil
	case strings.HasPrefix(w.text, "@"):
		value, err := os.ReadFile(w.text[1:])
		if err != nil {
			return nil, usageError(err.Error())
		}
		return value, nil
	}
	return []byte(w.text), nil
}

// keysOf refuses what would not be one key on the wire, gomemcache's check for
// the empty one included, which it does not make.
func keysOf(words []word) ([]string, error) {
	keys := make([]string, len(words))
	for i, w := range words {
		if w.text == "" {
			return nil, memcache.ErrMalformedKey
		}
		keys[i] = w.text
	}
	return keys, nil
}

func ttlOf(s string) (int32, error) {
	ttl, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, usageError("a time to live is a whole number of seconds, not " + strconv.Quote(s))
	}
	return int32(ttl), nil
}
