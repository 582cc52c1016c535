// Package grub knows the kernel command line, wherever it lives, and what each boot
// entry really boots with.
//
// On Alibaba Cloud Linux 3 and its RHEL 8 relatives the command line lives in up to five
// places at once. Each has a parser that keeps every byte, so that an edit is a splice
// of the text and nothing else changes:
//
//   - [Cmdline]: the line itself, in the kernel's own quoting.
//   - [Defaults]: /etc/default/grub, the shell subset that grub2-mkconfig sources.
//   - [BLS]: an entry in /boot/loader/entries.
//   - [EnvBlock]: grubenv, 1024 bytes that GRUB itself writes to.
//   - [Script]: grub.cfg, in GRUB's script language.
//
// [Resolve] follows GRUB through them and says, for each entry of its menu, which words
// the kernel gets and where each word comes from. [Update] plans an [Edit] in every
// place, resolves the result again, and fails unless every entry has it.
//
// The package sees files through [rootfs.Tree] only.
package grub
