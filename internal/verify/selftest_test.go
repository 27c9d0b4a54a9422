package verify

import (
	"testing"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/history/broken"
)

// There is a defect for every check there is, so that none is taken on trust.
func TestEveryCheckHasADefect(t *testing.T) {
	shown := make(map[string]bool)
	for _, d := range broken.Defects() {
		shown[d.Check] = true
	}
	for _, level := range []string{"linearizable", "sequential", "causal", "eventual"} {
		for _, w := range all("") {
			survey := &history.Survey{Nodes: map[string]map[string]history.Outcome{"n1": {}}}
			trial := history.Trial{Level: level, Workload: w, Final: survey, Again: survey, Whole: true}
			for _, f := range trial.Judge() {
				if !shown[f.Check] {
					t.Errorf("%s, %s: nothing shows that %q can fail", level, w.Name, f.Check)
				}
			}
		}
	}
}

// A store that is right, taken for one that is not, is not caught.
func TestSelfTestFails(t *testing.T) {
	t.Parallel()
	sound := broken.Defect{Name: "none", About: "nothing is wrong", Level: "eventual", Workload: "register", Check: "eventual"}
	if c := try(t.Context(), sound, 1, 0); c.OK || c.Story == "" {
		t.Errorf("caught: %+v", c)
	}
}

func TestSelfTestFailsWhoIsNotRight(t *testing.T) {
	t.Parallel()
	liar := broken.Defect{Level: "linearizable", Log: broken.Forgetful}
	if c := try(t.Context(), liar, 1, 0); c.OK {
		t.Error("a broken store passes for a right one")
	}
}
