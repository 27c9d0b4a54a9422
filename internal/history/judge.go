package history

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// Trial is a history, and by what it is judged.
type Trial struct {
	Level    string // linearizable, sequential, causal or eventual
	Workload Workload
	History  History
	// Final is what all controllers had in the end, when all was quiet; nil: nobody
	// asked them. Again is what they had somewhat later.
	Final, Again *Survey
	// Rules are of the levels causal and eventual, Expiry of the workload Expiring.
	Rules  Rules
	Expiry ExpiryRules
	// Process is whose order counts at the levels linearizable and sequential; nil is
	// BySession.
	Process Process
	// Whole says that all the time nobody was cut off, came or went: then of several
	// cas of one version one wins, and no increment is lost, at any level.
	Whole bool
	// Begin is what the counter of Increments was set to.
	Begin uint64
	// Unsearched says that too much happens at a time for a search.
	Unsearched bool
	// Patience bounds the search, and Dir is where it draws. See Linearizable.
	Patience time.Duration
	Dir      string
}

// Finding is what a checker says of a trial.
type Finding struct {
	Check string
	Err   error // nil: nothing is wrong. ErrUndecided: it cannot tell
}

// Leaderless reports whether controllers answer each for itself at a level.
func Leaderless(level string) bool { return level == "causal" || level == "eventual" }

// Judge has every checker that a level and a workload are judged by look at the
// history.
func (t *Trial) Judge() []Finding {
	var all []Finding
	find := func(check string, err error) { all = append(all, Finding{check, err}) }
	h, rules := t.History, t.Rules
	if t.Level == "eventual" {
		rules.Late = HomeWait
	}
	switch {
	case t.Workload.Name == Expiring.Name:
		expiry := t.Expiry
		expiry.Shared, expiry.Late = t.Level == "linearizable", rules.Late
		find("expiry", Expired(h, expiry))
		if !Leaderless(t.Level) {
			find("version order", VersionOrder(h))
		}
		return all
	case t.Level == "causal":
		find("causal", Causal(h, rules))
		if t.Workload.Name == Chained.Name {
			find("chains", Chains(h))
		}
	case t.Level == "eventual":
		find("eventual", Eventual(h, rules))
	case t.Level == "sequential", t.Level == "linearizable":
		process := t.Process
		if process == nil {
			process = BySession
		}
		if t.Final != nil {
			h = h.With(*t.Final)
		}
		find("sequential", Sequential(h, process))
		if t.Level == "linearizable" {
			find("fresh reads", FreshReads(h))
			if !t.Unsearched {
				find("linearizable", Linearizable(h, t.Patience, t.Dir))
			}
		}
	default:
		find("level", fmt.Errorf("no checker knows the level %q", t.Level))
	}
	if t.Whole && Leaderless(t.Level) {
		find("one winner", OneWinner(h))
	}
	if t.Final == nil {
		return all
	}
	if Leaderless(t.Level) {
		find("converged", Converged(h, *t.Final, rules))
		if t.Again != nil {
			find("settled", Settled(h.With(*t.Again), *t.Final, rules))
		}
	}
	if t.Workload.Name == hotCounter {
		find("counter", t.counted())
	}
	if t.Workload.Name == UniqueSets.Name && !t.Rules.Lossy {
		find("kept sets", t.kept())
	}
	return all
}

// kept checks, of every controller, that it has what was acknowledged.
func (t *Trial) kept() error {
	h := slices.DeleteFunc(slices.Clone(t.History), func(e Event) bool { return t.Rules.MayLose != nil && t.Rules.MayLose(e) })
	for _, node := range slices.Sorted(maps.Keys(t.Final.Nodes)) {
		if _, err := KeptSets(h, t.Final.Nodes[node]); err != nil {
			return fmt.Errorf("asked at %s: %w", node, err)
		}
	}
	return nil
}

// counted checks the counter of Increments: by all that was acknowledged, where none
// may be lost.
func (t *Trial) counted() error {
	keys := t.History.Keys()
	if len(keys) != 1 {
		return fmt.Errorf("%d keys are no counter", len(keys))
	}
	out, _ := t.Final.final(keys[0])
	if out.Status == Miss && t.Rules.Lossy {
		return nil // it is not known what it was
	}
	final, err := strconv.ParseUint(out.Value, 10, 64)
	if err != nil {
		return fmt.Errorf("%s is no number in the end: %v", keys[0], out)
	}
	count := ExactCounter
	if Leaderless(t.Level) && !t.Whole {
		count = BoundedCounter
	}
	_, err = count(t.History, keys[0], t.Begin, final)
	return err
}

// Undecided reports whether the finding is that nothing can be said.
func (f Finding) Undecided() bool { return errors.Is(f.Err, ErrUndecided) }

// HomeWait is how long a controller of the level eventual waits for what another one
// decided for it; see [Rules].
const HomeWait = 200 * time.Millisecond

// Unsaid is how long what a controller acknowledged may have been told to nobody, at
// the levels without a leader. Much less is usual, but a machine may be busy.
const Unsaid = time.Second

// Loss is the end of a controller.
type Loss struct {
	Node string
	At   int64 // by the clock of the history
	// Kept says that what it acknowledged is safe: on its disk, or with others.
	Kept bool
}

// MayLose reports whether what an event wrote or read may have gone with a controller
// that was killed. What it acknowledged may be safe; but it shows what it is about to.
// See [Rules].
func MayLose(losses []Loss, e Event) bool {
	return slices.ContainsFunc(losses, func(l Loss) bool {
		return e.Node == l.Node && e.Return <= l.At && e.Return > l.At-int64(Unsaid) && (!l.Kept || e.Op.Kind == Get)
	})
}
