//go:build !linux

package bench

var bestDriver = netDriver
