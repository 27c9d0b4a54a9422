package repair

import "time"

// Every sets how often the store is looked at.
func (f *Filler) Every(d time.Duration) { f.every = d }
