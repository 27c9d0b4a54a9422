package raftlog

import (
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

func BenchmarkSave(b *testing.B) {
	for _, s := range []disk.Sync{disk.None, disk.OS, disk.Always} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%v/%d", s, n), func(b *testing.B) {
				o := disk.Options{Sync: s}
				if s != disk.None {
					o.Dir = disktest.NewDir(b)
				}
				l, err := Open(o)
				if err != nil {
					b.Fatal(err)
				}
				if err := l.Start(me); err != nil {
					b.Fatal(err)
				}
				value := []byte(strings.Repeat("v", 150))
				ents := make([]*pb.Entry, n)
				last := uint64(0)
				b.SetBytes(int64(n * 150))
				b.ReportAllocs()
				for b.Loop() {
					for i := range ents {
						last++
						ents[i] = &pb.Entry{Index: new(last), Term: new(uint64(1)), Type: pb.EntryNormal.Enum(), Data: value}
					}
					if err := l.Save(hard{1, 1, last - uint64(n)}.state(), ents); err != nil {
						b.Fatal(err)
					}
					if last%10_000 == 0 {
						l.Compact(last - 1000)
					}
				}
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// Compact of one entry, of a log that has few or many: the same.
func BenchmarkCompact(b *testing.B) {
	for _, n := range []uint64{1000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l, _ := Open(disk.Options{})
			e := entry(1, 1, "value")
			for i := range n {
				l.memory.put([]*pb.Entry{{Index: new(i + 1), Term: e.Term, Data: e.Data}})
			}
			one := make([]*pb.Entry, 1)
			b.ReportAllocs()
			for b.Loop() {
				one[0] = &pb.Entry{Index: new(l.memory.last + 1), Term: e.Term, Data: e.Data}
				l.memory.put(one)
				l.Compact(l.memory.base + 1)
			}
		})
	}
}

func BenchmarkEntries(b *testing.B) {
	l, _ := Open(disk.Options{})
	if err := l.Save(nil, entries(1, 100_000, 1)); err != nil {
		b.Fatal(err)
	}
	for _, n := range []uint64{1, 64, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Entries(500, 500+n, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
