package journal

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
)

// Append of batches of 150 byte records, with the checkpoints (of nothing) that keep
// the directory small.
func BenchmarkAppend(b *testing.B) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		for _, n := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("%v/%d", s, n), func(b *testing.B) {
				j, err := Open(disk.Options{Dir: b.TempDir(), Sync: s, BootID: "boot1"})
				if err != nil {
					b.Fatal(err)
				}
				if err := j.Start(me); err != nil {
					b.Fatal(err)
				}
				records := make([][]byte, n)
				for i := range records {
					records[i] = bytes.Repeat([]byte("v"), 150)
				}
				b.SetBytes(int64(n * 150))
				b.ReportAllocs()
				for b.Loop() {
					if err := j.Append(records); err != nil {
						b.Fatal(err)
					}
					if j.Size() > 256<<20 {
						b.StopTimer()
						if err := save(j, ""); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				}
				kill(b, j)
			})
		}
	}
}

// Open and Replay of 64 MiB: what a restart takes, apart from what is done with it.
func BenchmarkReplay(b *testing.B) {
	dir := b.TempDir()
	o := disk.Options{Dir: dir, Sync: disk.OS, BootID: "boot1"}
	j, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	if err := j.Start(me); err != nil {
		b.Fatal(err)
	}
	records := make([][]byte, 16)
	for i := range records {
		records[i] = bytes.Repeat([]byte("v"), 150)
	}
	for j.Size() < 64<<20 {
		if err := j.Append(records); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(j.Size())
	kill(b, j)
	for b.Loop() {
		j, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		if err := j.Replay(func([]byte) error { n++; return nil }); err != nil || n == 0 {
			b.Fatal(err)
		}
		kill(b, j)
	}
}
