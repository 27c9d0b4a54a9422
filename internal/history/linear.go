package history

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
)

// ErrUndecided is returned by Linearizable when the search took too long: give it
// more time, or more keys to the workload.
var ErrUndecided = errors.New("not decided in time")

// Linearizable returns an error unless every key behaves as one memcached would:
// each command takes effect at one moment between its call and its return. Keys
// are checked one by one, which is all there is to check (linearizability is
// local), except that a Flush may take effect at another moment for each key.
//
// A failure is written to a page in dir that shows it, unless dir is empty, and its
// story is in the error. Patience bounds the search over all keys.
func Linearizable(h History, patience time.Duration, dir string) error {
	if err := sane(h); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	keys := h.perKey()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if err := linearizableKey(ctx, key, keys[key], dir); err != nil {
			return err
		}
	}
	return nil
}

func linearizableKey(ctx context.Context, key string, h History, dir string) error {
	values, err := versionValues(key, h)
	if err != nil {
		return err
	}
	model := register(values)
	likely, all := openEnded(h)
	// What was never answered and never seen can always have happened last. So if
	// the rest is in order, all of it is, and the search is spared the many
	// moments at which these could have happened.
	left := func() time.Duration {
		deadline, _ := ctx.Deadline()
		return max(time.Until(deadline), time.Millisecond)
	}
	switch result := porcupine.CheckOperationsTimeout(model, likely, left()); {
	case result == porcupine.Ok:
		return nil
	case result == porcupine.Illegal && len(all) > len(likely):
		result = porcupine.CheckOperationsTimeout(model, all, left())
		if result == porcupine.Ok {
			return nil
		}
		if result == porcupine.Unknown {
			return fmt.Errorf("%s: %d commands, %d of them open: %w", key, len(all), len(all)-len(likely), ErrUndecided)
		}
	case result == porcupine.Unknown:
		return fmt.Errorf("%s: %d commands: %w", key, len(likely), ErrUndecided)
	}
	return violation(key, h, model, all, dir)
}

// violation tells of a key that is not linearizable. The search is repeated for
// how far it gets, on less: what was called after the first moment at which all
// is lost does not matter, and a short story is one that is read.
func violation(key string, h History, model porcupine.Model, all []porcupine.Operation, dir string) error {
	const patience = 10 * time.Second
	// The shortest prefix, in the order of returns, that is not linearizable: what
	// had not returned then is left open.
	ends := make([]int64, 0, len(all))
	for _, op := range all {
		if op.Return != Forever {
			ends = append(ends, op.Return)
		}
	}
	slices.Sort(ends)
	until := func(end int64) (ops []porcupine.Operation) {
		for _, op := range all {
			if op.Call > end {
				continue
			}
			if op.Return > end {
				out := op.Output.(Outcome)
				if op.Input.(Op).Kind == Get {
					continue
				}
				op.Return, op.Output = Forever, Outcome{Value: out.Value}
			}
			ops = append(ops, op)
		}
		return ops
	}
	deadline := time.Now().Add(patience)
	first, _ := slices.BinarySearchFunc(ends, 0, func(end int64, _ int) int {
		if porcupine.CheckOperationsTimeout(model, until(end), max(time.Until(deadline), time.Millisecond)) == porcupine.Illegal {
			return 1
		}
		return -1
	})
	if first < len(ends) {
		all = until(ends[first])
		h = slices.DeleteFunc(slices.Clone(h), func(e Event) bool { return e.Call > ends[first] })
	}
	last := ""
	for _, e := range h {
		if first < len(ends) && e.Return == ends[first] {
			last = fmt.Sprintf("\nNothing allows the answer of: %v", e)
		}
	}
	drawn := ""
	if dir != "" {
		drawn = "\nDrawn in " + draw(model, all, patience, dir)
	}
	return fmt.Errorf("%s is not linearizable:\n%s%s%s", key, story(h, 60), last, drawn)
}

// draw makes a page of the search in dir and returns its path, or why there is none.
func draw(model porcupine.Model, ops []porcupine.Operation, patience time.Duration, dir string) string {
	_, info := porcupine.CheckOperationsVerbose(model, ops, patience)
	f, err := os.CreateTemp(dir, "violation-*.html")
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if err := porcupine.Visualize(model, info, f); err != nil {
		return err.Error()
	}
	return f.Name()
}

// versionValues returns the value each version of key was read with.
func versionValues(key string, h History) (map[uint64]string, error) {
	values := make(map[uint64]string)
	for _, e := range h {
		if e.Out.Status != Hit || e.Out.Version == 0 {
			continue
		}
		if old, ok := values[e.Out.Version]; ok && old != e.Out.Value {
			return nil, fmt.Errorf("%s: version %d was read as %q and as %q, here: %v", key, e.Out.Version, old, e.Out.Value, e)
		}
		values[e.Out.Version] = e.Out.Value
	}
	return values, nil
}

// openEnded turns events into operations for the search. A write whose outcome is
// unknown but whose token was read happened before that read's end; likely has
// these, all has also those that nobody can have seen.
func openEnded(h History) (likely, all []porcupine.Operation) {
	seen := make(map[string]int64)  // token -> when the first read that shows it ended
	writers := make(map[string]int) // token -> how many commands have it
	for _, e := range h {
		if e.Out.Status == Hit {
			for _, token := range tokens(e.Out.Value) {
				if at, ok := seen[token]; !ok || e.Return < at {
					seen[token] = e.Return
				}
			}
		}
		writers[e.Op.Value]++
	}
	for _, e := range h {
		op := porcupine.Operation{ClientId: e.Client, Input: e.Op, Call: e.Call, Output: e.Out, Return: e.Return, Metadata: e.Node}
		if e.Out.Status == Unknown {
			if e.Op.Kind == Get {
				continue
			}
			op.Return = Forever
			if at, ok := seen[e.Op.Value]; ok && writers[e.Op.Value] == 1 {
				op.Return = max(at, e.Call)
			}
		}
		all = append(all, op)
		if op.Return != Forever {
			likely = append(likely, op)
		}
	}
	return likely, all
}

// item is the state of a key.
type item struct {
	present bool
	value   string
	version uint64 // 0: nobody was told
}

// register is the model of one key of a memcached. Values tells what the versions
// were read as.
func register(values map[uint64]string) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return item{} },
		Step: func(state, input, output any) (bool, any) {
			after, ok := step(state.(item), input.(Op), output.(Outcome), values)
			return ok, after
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
		DescribeState: func(state any) string {
			s := state.(item)
			if !s.present {
				return "absent"
			}
			return fmt.Sprintf("%s @%d", s.value, s.version)
		},
	}
}

// step returns the item after op was answered with out, and whether it may be.
func step(cur item, op Op, out Outcome, values map[uint64]string) (item, bool) {
	works, next := cur.present, item{present: true, value: op.Value, version: out.Version}
	refused := NotStored
	success := Stored
	switch op.Kind {
	case Get:
		if !cur.present {
			return cur, out.Status == Miss || out.Status == Unknown
		}
		if out.Status == Unknown {
			return cur, true
		}
		if out.Status != Hit || out.Value != cur.value {
			return cur, false
		}
		if out.Version != 0 {
			if cur.version != 0 && cur.version != out.Version {
				return cur, false
			}
			cur.version = out.Version
		}
		return cur, true
	case Set:
		works = true
	case Add:
		works = !cur.present
	case Replace:
	case CAS:
		refused = Exists
		if !cur.present {
			refused = NotFound
		}
		if cur.version != 0 {
			works = cur.version == op.Compare
		} else {
			// Whoever compares has read, and values are unique.
			value, known := values[op.Compare]
			works = cur.present && known && value == cur.value
		}
	case Append:
		next.value = cur.value + op.Value
	case Prepend:
		next.value = op.Value + cur.value
	case Incr, Decr:
		success, refused = Counted, NotFound
		n, _ := strconv.ParseUint(cur.value, 10, 64)
		if op.Kind == Incr {
			n += op.Delta
		} else {
			n -= min(n, op.Delta)
		}
		next.value = strconv.FormatUint(n, 10)
		if works && out.Status == Counted && out.Number != n {
			return cur, false
		}
	case Delete:
		success, refused, next = Deleted, NotFound, item{}
	case Flush:
		works, success, next = true, Flushed, item{}
	}
	switch {
	case out.Status == Unknown && works, out.Status == success && works:
		return next, true
	case out.Status == Unknown, out.Status == refused && !works:
		return cur, true
	}
	return cur, false
}
