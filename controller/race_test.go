//go:build race

package controller

// raceEnabled: the detector changes what memory and time things take.
const raceEnabled = true
