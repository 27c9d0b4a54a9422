package room_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/room"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoomIsToldOf(t *testing.T) {
	dir := t.TempDir()
	enough := room.New(func(error) {}, room.Reserved{Dir: dir, Reserve: 1})
	defer enough.Close()
	if err := enough.Err(); err != nil {
		t.Errorf("with a byte to reserve: %v", err)
	}
	other := t.TempDir()
	full := room.New(func(error) {}, room.Reserved{Dir: dir, Reserve: 1}, room.Reserved{Dir: other, Reserve: 1 << 60})
	defer full.Close()
	if err := full.Err(); !errors.Is(err, room.ErrFull) || !strings.Contains(err.Error(), other) {
		t.Errorf("with an exbibyte to reserve: %v, want ErrFull and %s", err, other)
	}
	if d := full.Disks(); len(d) != 2 || d[0].Dir != dir || d[0].Reserve != 1 || d[1].Dir != other || d[1].Reserve != 1<<60 || d[1].Free == 0 || d[1].Free > d[1].Total {
		t.Errorf("%+v", d)
	}
	full.Close() // twice is once
}

// TestRoomComesBack is on a small file system of its own.
func TestRoomComesBack(t *testing.T) {
	dir := attunetest.SmallDisk(t, 16<<20)
	var told atomic.Int64
	w := room.New(func(error) { told.Add(1) }, room.Reserved{Dir: dir, Reserve: 8 << 20})
	defer w.Close()
	if err := w.Err(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "filler")
	if err := os.WriteFile(file, make([]byte, 12<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	attunetest.Eventually(t, "it is told that the disk is full", func() bool { return w.Err() != nil })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	attunetest.Eventually(t, "it is told that there is room", func() bool { return w.Err() == nil })
	attunetest.Eventually(t, "both are told", func() bool { return told.Load() == 2 })
}
