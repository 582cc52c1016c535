package testimage

import "testing"

// BuildAnew is Build without the copy in memory.
func BuildAnew(tb testing.TB, name string) string {
	tb.Helper()
	return Named(tb, name).build(tb)
}
