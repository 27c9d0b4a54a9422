package raftlog

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

// testdata has what an earlier version wrote, and how it saw that.
func TestDirectoryOfAnEarlierVersion(t *testing.T) {
	for name, s := range map[string]disk.Sync{"died": disk.OS, "installed": disk.Always} {
		want, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		if got := logs.Reopened(t, disktest.CopyDir(t, filepath.Join("testdata", name)), s); got+"\n" != string(want) {
			t.Errorf("%s is read as\n%s\nand was\n%s", name, got, want)
		}
	}
}
