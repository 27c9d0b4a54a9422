package ordered

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

type simInput struct {
	verb  attune.Verb
	read  bool
	key   string
	value string
}

type simOutput struct {
	unknown bool
	refused bool // nothing was done, says the error
	status  attune.Status
	value   string
	number  uint64
	unique  uint64
}

// client does one op after the other at any node, until the simulation stops.
// After an op whose outcome is unknown it goes on as another client.
func (s *sim) client(id int) {
	if s.stopped {
		return
	}
	var up []*simNode
	for _, n := range s.nodes {
		if n.core != nil && n.core.st.formed {
			up = append(up, n)
		}
	}
	again := func(id int) {
		s.after(time.Duration(s.rng.IntN(30))*time.Millisecond, func() { s.client(id) })
	}
	if len(up) == 0 {
		again(id)
		return
	}
	n := up[s.rng.IntN(len(up))]
	in := simInput{key: "k" + strconv.Itoa(s.rng.IntN(simKeys))}
	switch s.rng.IntN(8) {
	case 0, 1, 2:
		in.read = true
	case 3:
		in.verb, in.value = attune.Set, strconv.Itoa(s.rng.IntN(1000))
	case 4:
		in.verb, in.value = attune.Add, strconv.Itoa(s.rng.IntN(1000))
	case 5:
		in.verb = attune.Delete
	default:
		in.verb = attune.Incr
	}
	called := s.now
	record := func(out simOutput) {
		end := int64(s.now)
		if out.refused {
			return // and so the history must do without it
		}
		if out.unknown {
			if in.read {
				return // it has no effect
			}
			end = math.MaxInt64
		}
		s.history = append(s.history, porcupine.Operation{ClientId: id, Input: in, Call: int64(called), Output: out, Return: end})
	}
	n.do(in, func(out simOutput) {
		if out.unknown && s.broken.retryUnknown && !in.read && n.core != nil {
			n.do(in, func(out simOutput) {
				record(out)
				s.clients++
				again(s.clients)
			})
			return
		}
		record(out)
		if out.unknown {
			s.clients++
			id = s.clients
		}
		again(id)
	})
}

// do has the node carry out an op.
func (n *simNode) do(in simInput, then func(simOutput)) {
	s := n.s
	key := attune.Key{Text: []byte(in.key)}
	key.Hash = n.rep.Hash(key.Text)
	call := &attune.Call{Ctx: context.Background(), Deadline: time.Time{}.Add(s.now + opTimeout)}
	local := localCall{call: call, deadline: s.now + opTimeout, kind: kindWrite}
	if in.read {
		local.kind = kindBarrier
	} else {
		call.Ops = []attune.Op{{Verb: in.verb, Key: key, Value: []byte(in.value), Delta: 1}}
		call.Res = make([]attune.Result, 1)
	}
	finish := func(err error) {
		if n.calls != nil {
			delete(n.calls, call)
		}
		var out simOutput
		why := errors.Join(err, call.Err)
		if len(call.Res) > 0 && call.Res[0].Status == attune.Failed {
			why = errors.Join(why, call.Res[0].Err)
		}
		switch {
		case refuses(why):
			out.refused = true
		case why != nil:
			out.unknown = true
		case in.read:
			it, err := n.rep.Get(context.Background(), key, nil, false)
			switch {
			case errors.Is(err, replica.ErrGone):
				out.unknown = true // the engine would fetch it
			case err != nil:
				s.t.Fatal(err)
			case !it.Live(n.core.clock.Load()):
				out.status = attune.Miss
			default:
				out.status, out.value, out.unique = attune.Hit, string(it.Value), it.CAS
			}
		default:
			out.status, out.number = call.Res[0].Status, call.Res[0].Number
		}
		then(out)
	}
	if in.read && s.broken.staleReads {
		finish(nil)
		return
	}
	n.calls[call] = finish
	call.Done = func() {
		s.after(0, func() { // the reader runs a moment later
			if f := n.calls[call]; f != nil {
				f(nil)
			}
		})
	}
	n.in.calls = append(n.in.calls, local)
	n.wake(time.Duration(s.rng.IntN(50)) * time.Microsecond)
}

// refuses reports whether an error tells a client that nothing was done.
func refuses(err error) bool {
	return slices.ContainsFunc([]error{errNoQuorum, errBusy, errFull, errNoValue, errLate, errFetching, errNotReady, repair.ErrBehind},
		func(no error) bool { return errors.Is(err, no) })
}

// simModel is one key of a memcached.
var simModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, simKeys)
		for _, op := range history {
			k := op.Input.(simInput).key[1] - '0'
			parts[k] = append(parts[k], op)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(st, input, output any) (bool, any) {
		cur, in, out := st.(string), input.(simInput), output.(simOutput)
		next, want := cur, simOutput{}
		switch {
		case in.read && cur == "":
			want.status = attune.Miss
		case in.read:
			want.status, want.value = attune.Hit, cur
		case in.verb == attune.Set, in.verb == attune.Add && cur == "":
			want.status, next = attune.Stored, in.value
		case in.verb == attune.Add:
			want.status = attune.NotStored
		case cur == "":
			want.status = attune.NotFound
		case in.verb == attune.Delete:
			want.status, next = attune.Deleted, ""
		default:
			n, _ := strconv.ParseUint(cur, 10, 64)
			want.status, want.number = attune.Counted, n+1
			next = strconv.FormatUint(n+1, 10)
			for len(next) < len(cur) {
				next += " "
			}
		}
		if out.unknown {
			return true, next
		}
		return out.status == want.status && out.value == want.value && out.number == want.number, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}
