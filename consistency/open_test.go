package consistency

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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
	var r *replica.Replica
	engine, err := Open(t.Context(), Eventual, Options{Node: "n1", Alone: true, OpenReplica: func(o replica.Options) (*replica.Replica, error) {
		o.Backend = backend
		r = replica.Open(o)
		return r, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	<-engine.Ready()
	key := attune.Key{Text: []byte("k"), Hash: r.Hash([]byte("k"))}
	if err := engine.Health(); err != nil {
		t.Error(err)
	}
	c := attune.Call{
		Ctx:  t.Context(),
		Done: func() { t.Error("answered at once, and later too") },
		Ops:  []attune.Op{{Verb: attune.Set, Key: key, Value: []byte("v")}},
		Res:  make([]attune.Result, 1),
	}
	if !engine.Write(&c) || c.Res[0].Status != attune.Stored {
		t.Errorf("%+v", c.Res[0])
	}
	c.Err = context.Canceled // of an earlier request
	if !engine.Barrier(&c) || c.Err != nil {
		t.Error(c.Err)
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

// hung is a backend that answers nothing before its context ends.
type hung struct{}

func (hung) Get(ctx context.Context, _ attune.Key, _ []byte) (kvadapter.Record, error) {
	<-ctx.Done()
	return kvadapter.Record{}, context.Cause(ctx)
}

func (hung) Put(ctx context.Context, _ attune.Key, _ kvadapter.Record) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (hung) Delete(context.Context, attune.Key) error { return nil }
func (hung) Close() error                             { return nil }

// TestEventualGivesUpAtTheDeadline: a backend that hangs keeps a request no
// longer than that, or than somebody is interested.
func TestEventualGivesUpAtTheDeadline(t *testing.T) {
	var r *replica.Replica
	engine, err := Open(t.Context(), Eventual, Options{Node: "n1", Alone: true, OpenReplica: func(o replica.Options) (*replica.Replica, error) {
		o.Backend = hung{}
		r = replica.Open(o)
		return r, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	for _, c := range []struct {
		ctx  context.Context
		wait time.Duration
		want error
	}{{t.Context(), 20 * time.Millisecond, ErrTimeout}, {ctx, 0, gone}, {ctx, time.Hour, gone}} {
		done := make(chan struct{})
		call := attune.Call{
			Ctx: c.ctx, Done: func() { close(done) },
			Ops: []attune.Op{{Verb: attune.Set, Key: attune.Key{Text: []byte("k"), Hash: r.Hash([]byte("k"))}, Value: []byte("v")}},
			Res: make([]attune.Result, 1),
		}
		if c.wait > 0 {
			call.Deadline = time.Now().Add(c.wait)
		}
		if !engine.Write(&call) {
			<-done
		}
		if call.Res[0].Status != attune.Failed || !errors.Is(call.Res[0].Err, c.want) {
			t.Errorf("after %v: %+v, want %v", c.wait, call.Res[0], c.want)
		}
	}
}

func TestOpenRefusesNoLevel(t *testing.T) {
	engine, err := Open(t.Context(), Level(99), Options{})
	if engine != nil || err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("%v, %v", engine, err)
	}
}
