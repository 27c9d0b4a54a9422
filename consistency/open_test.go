package consistency

import (
	"context"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOpenEventual(t *testing.T) {
	backend, err := kvadapter.Open("embedded")
	if err != nil {
		t.Fatal(err)
	}
	r := replica.Open(replica.Options{Backend: backend})
	engine, err := Open(Eventual, Options{Replica: r, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	<-engine.Ready()
	key := attune.Key{Text: []byte("k"), Hash: r.Hash([]byte("k"))}
	var session Session
	res := make([]attune.Result, 1)
	engine.Write(context.Background(), &session, []attune.Op{{Verb: attune.Set, Key: key, Value: []byte("v")}}, res)
	if res[0].Status != attune.Stored {
		t.Errorf("%+v", res[0])
	}
	if err := engine.Barrier(context.Background(), &session); err != nil {
		t.Error(err)
	}
	if it, err := r.Get(context.Background(), key, nil, true); err != nil || string(it.Value) != "v" || !it.Live(engine.Now()) {
		t.Errorf("%+v, %v", it, err)
	}
	if err := engine.Close(); err != nil {
		t.Error(err)
	}
	if err := backend.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenSaysWhichLevelsThereAre(t *testing.T) {
	for _, level := range []Level{Linearizable, Sequential, Causal} {
		engine, err := Open(level, Options{})
		if engine != nil || err == nil {
			t.Fatalf("%v was opened", level)
		}
		if !strings.Contains(err.Error(), `"`+level.String()+`"`) || !strings.Contains(err.Error(), "use eventual") {
			t.Errorf("%v: %v", level, err)
		}
	}
}
