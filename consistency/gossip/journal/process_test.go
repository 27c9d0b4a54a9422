package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

// childDir is where this test binary, started again, appends until it is killed.
const childDir = "JOURNAL_TEST_DIR"

// child appends numbers and tells them on its standard output as they are
// acknowledged, with checkpoints meanwhile.
func child() {
	j, err := Open(disk.Options{Dir: os.Getenv(childDir), Sync: disk.OS, BootID: "boot1", SegmentBytes: 4096})
	if err == nil {
		err = j.Start(me)
	}
	for i := 1; err == nil; i++ {
		if err = put(j, fmt.Sprint(i)); err == nil {
			fmt.Println(i)
		}
		if err == nil && i%1000 == 0 {
			err = save(j, fmt.Sprint(i))
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// A process that is killed loses nothing that it acknowledged; as long as it lives,
// nobody else gets its directory.
func TestKilledProcess(t *testing.T) {
	for round := range 5 {
		dir := disktest.NewDir(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		last := ""
		for i := 0; i < 500*(round+1) && lines.Scan(); i++ {
			last = lines.Text()
		}
		if _, err := Open(disk.Options{Dir: dir, Sync: disk.OS, BootID: "boot1"}); !errors.Is(err, disk.ErrInUse) || !strings.Contains(err.Error(), dir) {
			t.Error("two processes use one directory:", err)
		}
		time.Sleep(time.Duration(round) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		for lines.Scan() {
			last = lines.Text()
		}
		_ = cmd.Wait() // it says that it was killed
		var acknowledged, got int
		if _, err := fmt.Sscan(last, &acknowledged); err != nil {
			t.Fatal("the child said:", last)
		}
		j := openAt(t, dir, disk.OS)
		err = errors.Join(j.LoadState(func(r io.Reader) error {
			_, err := fmt.Fscan(r, &got)
			return err
		}), j.Replay(func(r []byte) error {
			var n int
			if _, err := fmt.Sscan(string(r), &n); err != nil || n != got+1 {
				return fmt.Errorf("%q follows %d: %v", r, got, err)
			}
			got = n
			return nil
		}))
		// One more may have been appended than told.
		if err != nil || got != acknowledged && got != acknowledged+1 {
			t.Errorf("%d were acknowledged, and %d are there: %v", acknowledged, got, err)
		}
		kill(t, j)
	}
}
