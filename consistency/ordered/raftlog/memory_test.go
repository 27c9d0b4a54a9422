package raftlog

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/disk"
)

// entry makes one.
func entry(index, term uint64, data string) *pb.Entry {
	e := &pb.Entry{Index: new(index), Term: new(term), Type: pb.EntryNormal.Enum()}
	if data != "" {
		e.Data = []byte(data)
	}
	return e
}

// The log answers as Raft's own in-memory storage, whatever happens to both. All of
// blocks' borders are crossed.
func TestMemoryIsRaftsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, err := Open(disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		own := raft.NewMemoryStorage()
		term := uint64(1)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				first, _ := own.FirstIndex()
				last, _ := own.LastIndex()
				from := last + 1
				if rapid.IntRange(0, 3).Draw(t, "conflict") == 0 {
					from = rapid.Uint64Range(first, last+1).Draw(t, "from")
					term++
				}
				ents := make([]*pb.Entry, rapid.SampledFrom([]int{1, 3, 200, 600}).Draw(t, "n"))
				size := rapid.IntRange(0, 200).Draw(t, "size")
				for i := range ents {
					ents[i] = entry(from+uint64(i), term, fmt.Sprintf("%*d", size, i))
				}
				held, _ := l.Entries(first, last+1, 1<<20)
				was := fmt.Sprint(held)
				if err := errors.Join(l.Save(nil, ents), own.Append(ents)); err != nil {
					t.Fatal(err)
				}
				if now := fmt.Sprint(held); now != was {
					t.Fatal("entries that were handed out changed")
				}
			},
			"compact": func(t *rapid.T) {
				first, _ := own.FirstIndex()
				last, _ := own.LastIndex()
				if last < first {
					return
				}
				to := rapid.Uint64Range(first, last).Draw(t, "to")
				l.Compact(to)
				l.Compact(to - 1)
				if err := own.Compact(to); err != nil {
					t.Fatal(err)
				}
			},
			"hard state": func(t *rapid.T) {
				hs := &pb.HardState{Term: new(term), Vote: new(uint64(7)), Commit: new(rapid.Uint64().Draw(t, "commit"))}
				if err := errors.Join(l.Save(hs, nil), own.SetHardState(hs)); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) { same(t, l, own) },
		})
	})
}

func same(t *rapid.T, l *Log, own *raft.MemoryStorage) {
	h1, _, _ := l.InitialState()
	h2, _, _ := own.InitialState()
	if !proto.Equal(h1, h2) {
		t.Fatalf("hard state %v, want %v", h1, h2)
	}
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if f, _ := own.FirstIndex(); f != first {
		t.Fatalf("first index %d, want %d", first, f)
	}
	if n, _ := own.LastIndex(); n != last {
		t.Fatalf("last index %d, want %d", last, n)
	}
	for range 3 {
		i := rapid.Uint64Range(max(first, 4)-4, last+3).Draw(t, "i")
		t1, err1 := l.Term(i)
		t2, err2 := own.Term(i)
		if t1 != t2 || err1 != err2 {
			t.Fatalf("term of %d is %d, %v; want %d, %v", i, t1, err1, t2, err2)
		}
	}
	lo := rapid.Uint64Range(first-1, last+1).Draw(t, "lo")
	hi := rapid.Uint64Range(lo, last+1).Draw(t, "hi")
	if lo < hi {
		limit := rapid.SampledFrom([]uint64{0, 1, 100, 1000, 1 << 40}).Draw(t, "limit")
		e1, err1 := l.Entries(lo, hi, limit)
		e2, err2 := own.Entries(lo, hi, limit)
		if err1 != err2 || len(e1) != len(e2) {
			t.Fatalf("[%d, %d) within %d: %d entries, %v; want %d, %v", lo, hi, limit, len(e1), err1, len(e2), err2)
		}
		for i := range e1 {
			if e1[i] != e2[i] {
				t.Fatalf("[%d, %d): entry %d is %v, want %v", lo, hi, i, e1[i], e2[i])
			}
		}
	}
	if _, err := l.Entries(last+1, last+2, 1); err != raft.ErrUnavailable {
		t.Fatalf("an entry behind the last: %v", err)
	}

	// What IndexFor promises, counted one by one.
	budget := rapid.SampledFrom([]int64{-1, 0, 300, 5000, 1 << 40}).Draw(t, "budget")
	want, sum := last, int64(0)
	for ; want >= first; want-- {
		e, _ := l.Entries(want, want+1, 0)
		if sum += int64(proto.Size(e[0])); sum > budget {
			break
		}
	}
	if got := l.IndexFor(budget); got != want {
		t.Fatalf("index for %d bytes is %d, want %d", budget, got, want)
	}
	if all := l.IndexFor(l.Bytes()); all != first-1 {
		t.Fatalf("not all entries from %d take the %d bytes of all: those behind %d do", first, l.Bytes(), all)
	}
}

func TestEntrySizeIsThatOfProtocolBuffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &pb.Entry{}
		if rapid.Bool().Draw(t, "has index") {
			e.Index = new(rapid.Uint64().Draw(t, "index"))
		}
		if rapid.Bool().Draw(t, "has term") {
			e.Term = new(rapid.Uint64().Draw(t, "term"))
		}
		if rapid.Bool().Draw(t, "has type") {
			e.Type = pb.EntryConfChangeV2.Enum()
		}
		if rapid.Bool().Draw(t, "has data") {
			e.Data = make([]byte, rapid.SampledFrom([]int{0, 1, 127, 128, 20000}).Draw(t, "data"))
		}
		if got, want := entrySize(e), proto.Size(e); got != uint64(want) {
			t.Fatalf("size of %v is %d, want %d", e, got, want)
		}
	})
}

func TestForgettingMoreThanThereIsPanics(t *testing.T) {
	l, _ := Open(disk.Options{})
	defer func() {
		if recover() == nil {
			t.Error("a log without entry 1 forgot it")
		}
	}()
	l.Compact(1)
}

func TestSnapshotComesFromWhoeverIsSet(t *testing.T) {
	l, _ := Open(disk.Options{})
	if _, err := l.Snapshot(); err != raft.ErrSnapshotTemporarilyUnavailable {
		t.Errorf("before it was set: %v", err)
	}
	want := &pb.Snapshot{Data: []byte("x")}
	l.OnSnapshot(func() (*pb.Snapshot, error) { return want, nil })
	if got, err := l.Snapshot(); got != want || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestEntriesThatDoNotFitAreRefused(t *testing.T) {
	l, _ := Open(disk.Options{})
	if err := l.Install(10, 2, nil); err != nil {
		t.Fatal(err)
	}
	for _, ents := range [][]*pb.Entry{
		{entry(12, 2, "")}, {entry(10, 2, "")}, {entry(11, 2, ""), entry(13, 2, "")},
	} {
		if l.Save(nil, ents) == nil {
			t.Errorf("saved %v behind 10", ents)
		}
	}
	if err := l.Install(10, 2, nil); err != raft.ErrSnapOutOfDate {
		t.Errorf("installed again: %v", err)
	}
}
