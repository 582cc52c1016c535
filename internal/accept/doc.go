// Package accept holds the acceptance tests: the built program, run as a user without
// any privilege, on images that scripts outside the project make. Those scripts lie in
// a folder that REMASTER_SHARED names; without it the tests are skipped, since the
// project's own images ([remaster/internal/testimage]) are tested everywhere else.
//
//   - make accept: every layout, every format, and one boot.
//   - make boot-test: every bootable image, from every format, in BIOS and UEFI mode.
//
// REMASTER_WORK is where images are made and kept from one run to the next.
package accept
