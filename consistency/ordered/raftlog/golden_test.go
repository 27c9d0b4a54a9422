package raftlog

import (
	"testing"

	"github.com/attunekv/attune/consistency/disk"
)

func TestDirectoryOfAnEarlierVersion(t *testing.T) {
	logs.Golden(t, "died", disk.OS)
	logs.Golden(t, "installed", disk.Always)
}
