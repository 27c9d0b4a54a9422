//go:build race

package controller

// raceEnabled: the detector changes what memory and time things take. A test that
// leaves something out for it is named in the Makefile, at WITHOUT_RACE, too.
const raceEnabled = true
