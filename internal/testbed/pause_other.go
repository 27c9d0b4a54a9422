//go:build !unix

package testbed

import (
	"errors"
	"os"
)

var errNoPause = errors.New("this system cannot pause a process; leave that fault out")

func pause(*os.Process) error { return errNoPause }

func resume(*os.Process) error { return errNoPause }
