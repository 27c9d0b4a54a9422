package journal

import (
	"testing"

	"github.com/attunekv/attune/consistency/disk"
)

func TestDirectoryOfAnEarlierVersion(t *testing.T) {
	journals.Golden(t, "died", disk.OS)
	journals.Golden(t, "closed", disk.Always)
}
